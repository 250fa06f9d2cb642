"""Tiny models of mt5."""

from __future__ import annotations

from cases import Case
from cases.t5 import SIZES

CASES = [
    Case("mt5-own-head", "mt5", SIZES | {"tie_word_embeddings": False}, seq2seq=True),
    Case("mt5-plain", "mt5", SIZES | {"feed_forward_proj": "relu", "tie_word_embeddings": False}, seq2seq=True),
]
