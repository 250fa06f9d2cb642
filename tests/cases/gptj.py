"""Tiny models of gptj."""

from __future__ import annotations

from cases import case
from cases.gpt2 import SIZES

CASES = [
    case("gptj", "plain", SIZES, rotary_dim=4),
    case("gptj", "all-rotary-tied", SIZES, rotary_dim=8, n_inner=80, tie_word_embeddings=True),
]
