"""Tiny models of doge."""

from __future__ import annotations

from cases import SIZES, case

SMALL = SIZES | {"num_experts": 4}  # none are built, but a larger number than the file's sizes is refused

CASES = [
    case("doge", "plain", SMALL),
    case(
        "doge",
        "few-keys-biased-tied",
        SMALL,
        keep_window_size=4,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
    ),
    case("doge", "few-keys-of-a-window", SMALL, keep_window_size=3, sliding_window=5),
]
