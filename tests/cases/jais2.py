"""Tiny models of jais2."""

from __future__ import annotations

from cases import case

CASES = [
    case("jais2", "biased"),
    case("jais2", "unbiased-tied", head_dim=10, attention_bias=False, mlp_bias=False, tie_word_embeddings=True),
]
