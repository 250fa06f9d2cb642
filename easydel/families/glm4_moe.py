"""GLM-4.5 and 4.6 (Zhipu AI 2025, arXiv:2508.06471): half-rotated heads, DeepSeek-V3's shared and routed experts."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import deepseek_v2 as v2
from easydel.families import deepseek_v3 as v3
from easydel.families import family
from easydel.families import llama as base
from easydel.layers.attention import QKNorm
from easydel.layers.norm import RMSNorm

SIZES = {"vocab_size": 151552, "intermediate_size": 10944, "num_hidden_layers": 46, "max_position_embeddings": 131072}
HEADS = {"num_attention_heads": 96, "num_key_value_heads": 8, "partial_rotary_factor": 0.5, "use_qk_norm": False}
EXPERTS = {"n_routed_experts": 128, "n_shared_experts": 1, "moe_intermediate_size": 1408, "first_k_dense_replace": 1}
CHOICE = {"num_experts_per_tok": 8, "n_group": 1, "topk_group": 1, "norm_topk_prob": True}
DEFAULTS = v2.DEFAULTS | SIZES | HEADS | EXPERTS | CHOICE | {"rms_norm_eps": 1e-5}


@family("glm4_moe", v3.names, defaults=DEFAULTS, aliases=v3.ALIASES)
def glm4_moe(c: HFConfig) -> Decoder:
    norm = QKNorm(RMSNorm(c.rms_norm_eps)) if c.use_qk_norm else None
    mixer = base.attention(c, bias=c.attention_bias, qk_norm=norm)
    return base.pre_norm(c, [mixer] * c.num_hidden_layers, v2.feed_forwards(c, v3.corrected_router(c)))
