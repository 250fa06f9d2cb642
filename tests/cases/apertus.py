"""Tiny models of apertus."""

from __future__ import annotations

from cases import LLAMA3, case

CASES = [
    case("apertus", "xielu-biased", head_dim=10, attention_bias=True, rope_parameters=LLAMA3),
    case("apertus", "relu2-tied", hidden_act="relu2", tie_word_embeddings=True),
]
