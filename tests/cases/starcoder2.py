"""Tiny models of starcoder2."""

from __future__ import annotations

from cases import case

CASES = [
    case("starcoder2", "window", sliding_window=5),
    case("starcoder2", "unbiased-untied", use_bias=False, tie_word_embeddings=False),
]
