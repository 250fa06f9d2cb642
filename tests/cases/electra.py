"""Tiny models of electra."""

from __future__ import annotations

from cases.bert import both_ways, causal

CASES = [
    causal("electra", "causal", embedding_size=20, hidden_act="relu"),
    both_ways("electra", "one-width", embedding_size=48),
]
