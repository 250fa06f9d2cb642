"""Tiny models of roberta."""

from __future__ import annotations

from cases.bert import both_ways, causal, untied

CASES = [
    causal("roberta", "causal", hidden_act="relu"),
    both_ways("roberta", "both-ways", pad_token_id=2),
    untied(causal("roberta", "untied"), "lm_head.bias"),
]
