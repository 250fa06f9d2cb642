"""Tiny models of xlm-roberta-xl."""

from __future__ import annotations

from cases.bert import causal

CASES = [
    causal("xlm-roberta-xl", "causal"),
]
