"""Qwen3-MoE (Yang et al. 2025, arXiv:2505.09388): Qwen3 with routed experts and no shared one."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family, qwen2_moe
from easydel.families import llama as base
from easydel.layers.attention import QKNorm
from easydel.layers.norm import RMSNorm

SIZES = {"intermediate_size": 6144, "num_attention_heads": 32, "num_key_value_heads": 4}
EXPERTS = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
DEFAULTS = qwen2_moe.DEFAULTS | SIZES | EXPERTS


# max_window_layers: with a window, all layers have it
@family(
    "qwen3_moe",
    base.NAMES,
    defaults=DEFAULTS,
    aliases={"num_experts": "num_local_experts"},
    inert=("max_window_layers",),
)
def qwen3_moe(c: HFConfig) -> Decoder:
    window = c.sliding_window if c.use_sliding_window else None
    norm, bias = QKNorm(RMSNorm(c.rms_norm_eps)), c.attention_bias
    mixer = base.attention(c, bias=bias, out_bias=bias, qk_norm=norm, window=window)
    return base.pre_norm(c, [mixer] * c.num_hidden_layers, qwen2_moe.experts(c))
