"""Tiny models of gpt_neox_japanese."""

from __future__ import annotations

from cases import case
from cases.gpt_neox import SIZES

CASES = [
    case("gpt_neox_japanese", "plain", SIZES, intermediate_multiple_size=2),
    case(
        "gpt_neox_japanese",
        "partly-rotary-untied",
        SIZES,
        intermediate_multiple_size=3,
        rotary_pct=0.5,
        rotary_emb_base=500,
        hidden_act="relu",
        layer_norm_eps=1e-3,
        tie_word_embeddings=False,
    ),
]
