"""Tiny models of olmo2."""

from __future__ import annotations

from cases import case

CASES = [
    case("olmo2", "plain"),
    case("olmo2", "biased-tied", attention_bias=True, tie_word_embeddings=True),
]
