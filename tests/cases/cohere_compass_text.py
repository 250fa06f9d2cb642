"""Tiny models of cohere_compass_text."""

from __future__ import annotations

from cases import FULL, SLIDING, case

CASES = [
    case(
        "cohere_compass_text",
        "some-unrotated",
        sliding_window=5,
        layer_types=[FULL, SLIDING, FULL],
        rope_parameters={
            "full_attention": None,
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 1, 1]},
        },
    ),
    case(
        "cohere_compass_text",
        "all-rotated-biased-untied",
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 1, 1]},
        },
        logit_scale=0.3,
        attention_bias=True,
        tie_word_embeddings=False,
    ),
]
