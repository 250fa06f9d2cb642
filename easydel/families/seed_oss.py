"""Seed-OSS (ByteDance 2025, github.com/ByteDance-Seed/seed-oss): Llama with biases on q, k and v, and wide heads."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family
from easydel.families import llama as base

SIZES = {"vocab_size": 155136, "intermediate_size": 27648, "num_hidden_layers": 64, "max_position_embeddings": 524288}
HEADS = {"num_attention_heads": 80, "num_key_value_heads": 8, "head_dim": 128}
DEFAULTS = base.DEFAULTS | SIZES | HEADS | {"attention_bias": True, "attention_out_bias": False}


@family("seed_oss", base.NAMES, defaults=DEFAULTS)
def seed_oss(c: HFConfig) -> Decoder:
    mixer = base.attention(c, bias=c.attention_bias, out_bias=c.attention_out_bias)
    return base.pre_norm(c, [mixer] * c.num_hidden_layers, bias=c.mlp_bias)
