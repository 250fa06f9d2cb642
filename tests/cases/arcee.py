"""Tiny models of arcee."""

from __future__ import annotations

from cases import LLAMA3, case

CASES = [
    case("arcee", "plain", head_dim=10, rope_parameters=LLAMA3),
    case("arcee", "biased-tied", attention_bias=True, mlp_bias=True, hidden_act="gelu", tie_word_embeddings=True),
]
