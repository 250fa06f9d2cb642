"""Seed-OSS (ByteDance 2025, github.com/ByteDance-Seed/seed-oss): Llama with biases on q, k and v, and wide heads."""

from easydel.families import llama as base
from easydel.families._parts import Decoder, HFConfig, family


@family("seed_oss", base.NAMES)
def seed_oss(c: HFConfig) -> Decoder:
    mixer = base.attention(c, biased=("qkv" if c.attention_bias else "") + ("o" if c.attention_out_bias else ""))
    return base.pre_norm(c, [mixer] * c.num_hidden_layers, bias=c.mlp_bias)
