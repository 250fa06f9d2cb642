"""Tiny models of cohere2."""

from __future__ import annotations

from cases import FULL, SLIDING, case

CASES = [
    case("cohere2", "pattern", num_hidden_layers=5, sliding_window=5, logit_scale=0.3),
    case(
        "cohere2",
        "layer-types-biased-untied",
        sliding_window=5,
        layer_types=[FULL, SLIDING, SLIDING],
        attention_bias=True,
        tie_word_embeddings=False,
    ),
]
