"""Tiny models of nemotron."""

from __future__ import annotations

from cases import case

CASES = [
    case(
        "nemotron",
        "partial-biased",
        head_dim=10,
        partial_rotary_factor=0.4,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
    ),
]
