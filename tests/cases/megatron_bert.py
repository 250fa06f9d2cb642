"""Tiny models of megatron-bert."""

from __future__ import annotations

from cases.bert import causal

CASES = [
    causal("megatron-bert", "causal", hidden_act="relu"),
]
