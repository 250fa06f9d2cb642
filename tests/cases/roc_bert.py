"""Tiny models of roc_bert."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cases import Case
from cases.bert import both_ways, causal, untied

SMALL = {
    "pronunciation_vocab_size": 11,
    "pronunciation_embed_dim": 10,
    "shape_vocab_size": 13,
    "shape_embed_dim": 14,
    "pad_token_id": 2,  # torch trains no vector of padding, and every token here has the tables' first ones
}
SHAPES, SOUNDS = "roc_bert.embeddings.shape_embed.weight", "roc_bert.embeddings.pronunciation_embed.weight"


def without(case: Case, *tables: str) -> Case:
    """The same, where vectors in the files are not used."""
    return replace(case, not_exported=(*case.not_exported, *tables))


def small(name: str, make: Any = causal, **config: Any) -> Case:
    return make("roc_bert", name, **SMALL, **config)


CASES = [
    small("causal", hidden_act="relu"),
    untied(small("both-ways-untied", both_ways), "cls.predictions.bias"),
    without(small("silent", enable_pronunciation=False), SOUNDS),
    without(small("unseen", enable_shape=False), SHAPES),
    without(small("added", concat_input=False), SHAPES, SOUNDS),
]
