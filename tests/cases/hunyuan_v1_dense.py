"""Tiny models of hunyuan_v1_dense."""

from __future__ import annotations

from cases import case

CASES = [
    case(
        "hunyuan_v1_dense",
        "alpha-biased-tied",
        head_dim=10,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 50.0, "factor": 1.0, "alpha": 7.0},
        attention_bias=True,
        tie_word_embeddings=True,
    ),
]
