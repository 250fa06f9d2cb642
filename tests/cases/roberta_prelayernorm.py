"""Tiny models of roberta-prelayernorm."""

from __future__ import annotations

from cases.bert import causal

CASES = [
    causal("roberta-prelayernorm", "causal"),
]
