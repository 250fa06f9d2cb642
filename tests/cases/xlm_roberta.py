"""Tiny models of xlm-roberta."""

from __future__ import annotations

from cases.bert import both_ways

CASES = [
    both_ways("xlm-roberta", "both-ways"),
]
