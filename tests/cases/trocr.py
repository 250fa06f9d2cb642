"""Tiny models of trocr."""

from __future__ import annotations

from typing import Any

from cases import Case
from cases.bart import SIZES as BART, UNUSED

SIZES = {key: size for key, size in BART.items() if not key.startswith("encoder")}


def trocr(name: str, **config: Any) -> Case:
    return Case(f"trocr-{name}", "trocr", SIZES | config, slot_positions=True, not_exported=UNUSED)


CASES = [
    trocr("learned", scale_embedding=True),
    trocr("waves", use_learned_position_embeddings=False, layernorm_embedding=False, activation_function="relu"),
    trocr("untied", tie_word_embeddings=False),
]
