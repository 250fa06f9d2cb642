"""Youtu-LLM (Tencent 2025, arXiv:2512.24618): DeepSeek-V3's latent attention with dense feed-forwards."""

from easydel.families import deepseek_v2 as v2, llama as base
from easydel.families._parts import Decoder, HFConfig, family


@family("youtu", base.NAMES)
def youtu(c: HFConfig) -> Decoder:
    mixer = v2.latent_attention(c, interleaved=c.rope_interleave)
    return base.pre_norm(c, [mixer] * c.num_hidden_layers)
