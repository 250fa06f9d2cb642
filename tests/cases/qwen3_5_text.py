"""Tiny models of qwen3_5_text."""

from __future__ import annotations

from cases import case
from cases.qwen3_next import DELTA

CASES = [
    case("qwen3_5_text", "plain", **DELTA),
    case("qwen3_5_text", "biased-tied", **DELTA, attention_bias=True, tie_word_embeddings=True),
]
