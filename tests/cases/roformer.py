"""Tiny models of roformer."""

from __future__ import annotations

from dataclasses import replace

from cases import Case
from cases.bert import both_ways, causal, untied

WAVES = "roformer.encoder.embed_positions.weight"


def computed(case: Case) -> Case:
    """The same, whose table of positions transformers writes although it can be computed."""
    return replace(case, not_exported=(*case.not_exported, WAVES))


CASES = [
    computed(causal("roformer", "causal", embedding_size=20, hidden_act="relu")),
    computed(untied(both_ways("roformer", "untied"), "cls.predictions.bias")),
]
