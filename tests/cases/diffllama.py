"""Tiny models of diffllama."""

from __future__ import annotations

from cases import case

CASES = [
    case("diffllama", "plain"),
    case("diffllama", "biased-wide-tied", head_dim=10, attention_bias=True, tie_word_embeddings=True),
]
