"""Tiny models of ernie4_5."""

from __future__ import annotations

from cases import case

CASES = [
    case("ernie4_5", "biased-untied", head_dim=10, use_bias=True, tie_word_embeddings=False),
]
