"""Ministral 3 (Liu et al. 2026, arXiv:2601.08584): Mistral with YaRN, and scores that grow with the position."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family, mistral
from easydel.families import llama as base
from easydel.layers.position import GrowingScale

SIZES = {"vocab_size": 131072, "num_hidden_layers": 34, "head_dim": 128, "max_position_embeddings": 262144}
DEFAULTS = mistral.DEFAULTS | SIZES | {"rms_norm_eps": 1e-5, "sliding_window": None}
ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


@family("ministral3", base.NAMES, defaults=DEFAULTS)
def ministral3(c: HFConfig) -> Decoder:
    rope, scale = c.rope(default=ROPE), None
    if (growth := rope.pop("llama_4_scaling_beta", None)) is not None:
        scale = GrowingScale(float(growth), rope["original_max_position_embeddings"])
    mixer = base.attention(c, rope=rope, scale=scale, window=c.sliding_window)
    return base.pre_norm(c, [mixer] * c.num_hidden_layers)
