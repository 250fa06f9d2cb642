"""Tiny models of ctrl."""

from __future__ import annotations

from cases import case
from cases.gpt2 import SIZES

CASES = [
    case("ctrl", "tied", SIZES, dff=80),
    case("ctrl", "untied", SIZES, dff=80, layer_norm_epsilon=1e-3, tie_word_embeddings=False),
]
