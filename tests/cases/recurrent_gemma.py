"""Tiny models of recurrent_gemma."""

from __future__ import annotations

from dataclasses import replace

from cases import SIZES, case

OWN = {key: value for key, value in SIZES.items() if key != "max_position_embeddings"}
# padding goes into transformers' convolution
CASES = [
    replace(
        case("recurrent_gemma", "wide", OWN, lru_width=60, attention_window_size=5, attention_bias=True),
        slot_positions=True,
    ),
    replace(
        case("recurrent_gemma", "untied-longer-than-a-chunk", OWN, tie_word_embeddings=False, logits_soft_cap=5.0),
        slot_positions=True,
        length=70,
    ),
]
