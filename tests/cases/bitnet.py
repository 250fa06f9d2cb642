"""Tiny models of bitnet."""

from __future__ import annotations

from cases import case

CASES = [
    case("bitnet", "plain"),
    case("bitnet", "biased-tied", attention_bias=True, hidden_act="silu", tie_word_embeddings=True),
]
