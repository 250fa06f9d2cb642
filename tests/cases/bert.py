"""Tiny models of bert and its kin: causal, or seen both ways."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cases import Case

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
    "type_vocab_size": 3,
    "layer_norm_eps": 1e-5,
}


def causal(model_type: str, name: str, **config: Any) -> Case:
    return Case(f"{model_type}-{name}", model_type, SIZES | {"is_decoder": True} | config, slot_positions=True)


def both_ways(model_type: str, name: str, **config: Any) -> Case:
    """A model that cannot decode: tokens see those behind them."""
    return Case(f"{model_type}-{name}", model_type, SIZES | config, slot_positions=True, looks_ahead=True)


def untied(case: Case, unread: str) -> Case:
    """The same with a head of its own; transformers then writes a second bias that nothing reads."""
    return replace(case, config={**case.config, "tie_word_embeddings": False}, not_exported=(unread,))


CASES = [
    causal("bert", "causal", hidden_act="relu"),
    both_ways("bert", "both-ways"),
    untied(both_ways("bert", "untied"), "cls.predictions.bias"),
]
