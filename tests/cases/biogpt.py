"""Tiny models of biogpt."""

from __future__ import annotations

from cases import SIZES, case

CASES = [
    case("biogpt", "scaled", SIZES),
    case("biogpt", "unscaled-untied", SIZES, scale_embedding=False, hidden_act="relu", tie_word_embeddings=False),
]
