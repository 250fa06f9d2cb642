"""Tiny models of glm."""

from __future__ import annotations

from cases import case

CASES = [
    case("glm", "partial-unbiased-tied", head_dim=8, attention_bias=False, tie_word_embeddings=True),
]
