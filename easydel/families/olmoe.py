"""OLMoE (Muennighoff et al. 2024, arXiv:2409.02060): OLMo 2's norm on queries and keys, and experts in each layer."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family
from easydel.families import llama as base
from easydel.layers.attention import QKNorm
from easydel.layers.mlp import GLU
from easydel.layers.moe import MoE, TopK
from easydel.layers.norm import RMSNorm

SIZES = {"vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 2048, "num_hidden_layers": 16}
EXPERTS = {"num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False}
ATTENTION = {"num_attention_heads": 16, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "clip_qkv": None}
DEFAULTS = base.DEFAULTS | SIZES | EXPERTS | ATTENTION


@family("olmoe", base.NAMES, defaults=DEFAULTS, aliases={"num_experts": "num_local_experts"})
def olmoe(c: HFConfig) -> Decoder:
    norm, bias, layers = QKNorm(RMSNorm(c.rms_norm_eps), whole=True), c.attention_bias, c.num_hidden_layers
    mixer = base.attention(c, bias=bias, out_bias=bias, qk_norm=norm, clip=c.clip_qkv)
    router = TopK(c.num_experts_per_tok, c.norm_topk_prob)
    ffn = MoE(c.num_experts, GLU(c.intermediate_size, c.hidden_act), router)
    return base.pre_norm(c, [mixer] * layers, [ffn] * layers)
