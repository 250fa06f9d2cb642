"""Tiny models of big_bird: causal, or seen both ways, by blocks if there are more than 18 tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cases import Case
from cases.bert import both_ways, causal, untied

POOLER = ("bert.pooler.weight", "bert.pooler.bias")


def pooled(case: Case, **changes: Any) -> Case:
    """The same, with a pooler in its files that nothing reads."""
    return replace(case, not_exported=(*case.not_exported, *POOLER), **changes)


CASES = [
    pooled(causal("big_bird", "causal", use_bias=False, rescale_embeddings=True)),
    pooled(both_ways("big_bird", "blocks", block_size=2, num_random_blocks=2), length=25),
    pooled(both_ways("big_bird", "full", attention_type="original_full"), length=25),
    pooled(untied(both_ways("big_bird", "untied-short", hidden_act="relu"), "cls.predictions.bias")),
]
