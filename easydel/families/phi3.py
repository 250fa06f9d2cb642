"""Phi-3 and Phi-4-mini (Abdin et al. 2024, arXiv:2404.14219): Mistral with fused projections, LongRoPE beyond 4k."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family
from easydel.families import llama as base
from easydel.weights.names import GATE_UP, QKV, Fused

NAMES = base.NAMES.extended(fused=(Fused("self_attn.qkv_proj", QKV), Fused("mlp.gate_up_proj", GATE_UP)))
DEFAULTS = base.DEFAULTS | {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
}


@family("phi3", NAMES, defaults=DEFAULTS)
def phi3(c: HFConfig) -> Decoder:
    return base.pre_norm(c, [base.attention(c, window=c.sliding_window)] * c.num_hidden_layers)
