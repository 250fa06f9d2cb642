"""Tiny models of granite."""

from __future__ import annotations

from typing import Any

from cases import case

MULTIPLIERS: dict[str, Any] = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 0.7,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.2,
}

CASES = [
    case("granite", "multiplied", **MULTIPLIERS),
    case("granite", "plain-biased-tied", attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
]
