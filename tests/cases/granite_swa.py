"""Tiny models of granite_swa."""

from __future__ import annotations

from cases import FULL, SLIDING, case
from cases.granite import MULTIPLIERS

CASES = [
    case("granite_swa", "thetas", **MULTIPLIERS, sliding_window=5, layer_rope_theta=[0, 10000.0, 500.0]),
    case(
        "granite_swa",
        "layer-types-biased-untied",
        sliding_window=5,
        layer_types=[SLIDING, FULL, SLIDING],
        attention_multiplier=0.3,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
    ),
]
