"""ERNIE 4.5 (Baidu 2025, the ERNIE 4.5 technical report): Llama that rotates neighbouring channels, as GPT-J."""

from easydel.families import llama as base
from easydel.families._parts import Decoder, HFConfig, family


@family("ernie4_5", base.NAMES)
def ernie4_5(c: HFConfig) -> Decoder:
    mixer = base.attention(c, interleaved=True, biased=c.use_bias)
    return base.pre_norm(c, [mixer] * c.num_hidden_layers, bias=c.use_bias)
