"""Tiny models of modernbert-decoder."""

from __future__ import annotations

from cases import FULL, SLIDING, case
from cases.gpt_neox import SIZES

ROPES = {FULL: {"rope_type": "default", "rope_theta": 900.0}, SLIDING: {"rope_type": "default", "rope_theta": 90.0}}
SPECIAL = {"local_attention": 10, "rope_parameters": ROPES}

CASES = [
    case("modernbert-decoder", "plain", SIZES, **SPECIAL),
    case(
        "modernbert-decoder",
        "biased-untied",
        SIZES,
        **SPECIAL,
        attention_bias=True,
        mlp_bias=True,
        norm_bias=True,
        classifier_bias=True,
        classifier_activation="relu",
        decoder_bias=False,
        tie_word_embeddings=False,
        layer_types=[SLIDING, FULL, SLIDING],
    ),
]
