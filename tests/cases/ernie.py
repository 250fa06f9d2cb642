"""Tiny models of ernie."""

from __future__ import annotations

from cases.bert import both_ways, causal

CASES = [
    causal("ernie", "causal", use_task_id=True, task_type_vocab_size=5),
    both_ways("ernie", "both-ways"),
]
