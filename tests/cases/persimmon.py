"""Tiny models of persimmon."""

from __future__ import annotations

from cases import case
from cases.gpt_neox import SIZES

CASES = [
    case("persimmon", "normed", SIZES, intermediate_size=80),
    case(
        "persimmon",
        "plain-tied",
        SIZES,
        intermediate_size=80,
        qk_layernorm=False,
        hidden_act="gelu",
        layer_norm_eps=1e-3,
        tie_word_embeddings=True,
    ),
]
