"""Phi-3 and Phi-4-mini (Abdin et al. 2024, arXiv:2404.14219): Mistral with fused projections, LongRoPE beyond 4k."""

from easydel.families import llama as base
from easydel.families._parts import GATE_UP, QKV, Decoder, Fused, HFConfig, family

NAMES = base.NAMES.extended(fused=(Fused("self_attn.qkv_proj", QKV), Fused("mlp.gate_up_proj", GATE_UP)))


@family("phi3", NAMES)
def phi3(c: HFConfig) -> Decoder:
    return base.pre_norm(c, [base.attention(c, window=c.sliding_window)] * c.num_hidden_layers)
