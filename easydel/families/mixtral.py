"""Mixtral (Jiang et al. 2024, arXiv:2401.04088): Mistral's attention, and two of eight experts for each token."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family
from easydel.families import llama as base
from easydel.layers.mlp import GLU
from easydel.layers.moe import MoE, TopK

NAMES = base.NAMES.extended({"mlp": "block_sparse_moe", "gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"})
DEFAULTS = base.DEFAULTS | {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


@family("mixtral", NAMES, defaults=DEFAULTS, aliases={"num_local_experts": "num_experts"})
def mixtral(c: HFConfig) -> Decoder:
    router = TopK(c.num_experts_per_tok, renormalize=True)
    ffn = MoE(c.num_local_experts, GLU(c.intermediate_size, c.hidden_act), router)
    layers = c.num_hidden_layers
    return base.pre_norm(c, [base.attention(c, window=c.sliding_window)] * layers, [ffn] * layers)
