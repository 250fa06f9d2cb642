"""Tiny models of camembert."""

from __future__ import annotations

from cases.bert import both_ways

CASES = [
    both_ways("camembert", "both-ways"),
]
