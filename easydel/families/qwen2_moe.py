"""Qwen1.5-MoE and Qwen2-MoE (Yang et al. 2024, arXiv:2407.10671): Qwen2, routed experts and a gated shared one."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family, qwen2
from easydel.families import llama as base
from easydel.layers.mlp import GLU
from easydel.layers.moe import MoE, TopK
from easydel.layers.part import Part

SIZES = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24}
EXPERTS = {"num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408, "norm_topk_prob": False}
WHICH = {"decoder_sparse_step": 1, "mlp_only_layers": None}
OWN = {"num_attention_heads": 16, "num_key_value_heads": 16, "qkv_bias": True, "shared_expert_intermediate_size": 5632}
DEFAULTS = qwen2.DEFAULTS | SIZES | EXPERTS | WHICH | OWN


def experts(c: HFConfig, shared: GLU | None = None) -> list[Part]:
    """Routed experts in every `decoder_sparse_step`-th layer outside `mlp_only_layers`, dense ones in the others."""
    dense, expert = GLU(c.intermediate_size, c.hidden_act), GLU(c.moe_intermediate_size, c.hidden_act)
    router = TopK(c.num_experts_per_tok, c.norm_topk_prob)
    sparse = MoE(c.num_experts, expert, router, shared, shared_gate=shared is not None)
    step, only = c.decoder_sparse_step, c.mlp_only_layers or ()
    return [dense if i in only or (i + 1) % step else sparse for i in range(c.num_hidden_layers)]


@family("qwen2_moe", base.NAMES, defaults=DEFAULTS)
def qwen2_moe(c: HFConfig) -> Decoder:
    used, size, last = c.use_sliding_window, c.sliding_window, c.max_window_layers
    default = [qwen2.SLIDING if used and i < last and i % 2 == 0 else qwen2.FULL for i in range(c.num_hidden_layers)]
    windows = [size if kind == qwen2.SLIDING else None for kind in qwen2.layer_types(c, default)]
    mixers = [base.attention(c, bias=c.qkv_bias, window=window) for window in windows]
    return base.pre_norm(c, mixers, experts(c, GLU(c.shared_expert_intermediate_size, c.hidden_act)))
