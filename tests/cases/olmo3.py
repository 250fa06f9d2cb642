"""Tiny models of olmo3."""

from __future__ import annotations

from cases import FULL, SLIDING, YARN, case

CASES = [
    case(
        "olmo3",
        "two-ropes",
        num_hidden_layers=5,
        sliding_window=5,
        rope_parameters={
            FULL: YARN | {"attention_factor": 1.3},
            SLIDING: {"rope_type": "default", "rope_theta": 50.0},
        },
        attention_bias=True,
        tie_word_embeddings=True,
    ),
]
