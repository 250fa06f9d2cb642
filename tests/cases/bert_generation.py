"""Tiny models of bert-generation."""

from __future__ import annotations

from cases.bert import causal, untied

CASES = [
    causal("bert-generation", "causal"),
    untied(causal("bert-generation", "untied"), "lm_head.bias"),
]
