"""Tiny models of gpt_bigcode."""

from __future__ import annotations

from cases import case
from cases.gpt2 import SIZES

CASES = [
    case("gpt_bigcode", "multi-query", SIZES, tp=1, n_inner=80),
    case(
        "gpt_bigcode",
        "multi-head",
        SIZES,
        multi_query=False,
        scale_attn_weights=False,
        tie_word_embeddings=False,
        activation_function="gelu",
    ),
]
