"""Tiny models of codegen."""

from __future__ import annotations

from cases import case

SIZES = {"n_embd": 48, "n_head": 8, "n_layer": 3, "n_positions": 64}

CASES = [
    case("codegen", "plain", SIZES, rotary_dim=4),
    case("codegen", "all-rotary-tied", SIZES, rotary_dim=6, n_inner=80, tie_word_embeddings=True),
]
