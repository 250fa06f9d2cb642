"""Tiny models of data2vec-text."""

from __future__ import annotations

from cases.bert import both_ways

CASES = [
    both_ways("data2vec-text", "both-ways"),
]
