"""Helium 1 (Kyutai 2025, the model card of kyutai/helium-1-preview-2b): Llama that turns neighbouring channels."""

from easydel.families import llama as base
from easydel.families._parts import Decoder, HFConfig, family


@family("helium", base.NAMES)
def helium(c: HFConfig) -> Decoder:
    mixer = base.attention(c, interleaved=True, biased="qkv" if c.attention_bias else "")
    return base.pre_norm(c, [mixer] * c.num_hidden_layers, bias=c.mlp_bias)
