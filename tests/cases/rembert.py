"""Tiny models of rembert."""

from __future__ import annotations

from cases.bert import causal

CASES = [
    causal("rembert", "causal", input_embedding_size=20, output_embedding_size=56),
]
