"""Ministral 3 (Liu et al. 2026, arXiv:2601.08584): Mistral with YaRN, and scores that grow with the position."""

from easydel.families import llama as base
from easydel.families._parts import Decoder, GrowingScale, HFConfig, family


@family("ministral3", base.NAMES)
def ministral3(c: HFConfig) -> Decoder:
    rope, scale = c.rope(), None
    if (growth := rope.pop("llama_4_scaling_beta", None)) is not None:
        scale = GrowingScale(float(growth), rope["original_max_position_embeddings"])
    mixer = base.attention(c, rope=rope, scale=scale, window=c.sliding_window)
    return base.pre_norm(c, [mixer] * c.num_hidden_layers)
