"""Tiny models of lfm3."""

from __future__ import annotations

from dataclasses import replace

from cases import FULL, SLIDING, case
from cases.lfm2 import CONV

SMALL = {"head_dim": 12, "sliding_window": 5, "norm_eps": 1e-3}

CASES = [
    case("lfm3", "plain", num_hidden_layers=5, conv_L_cache=4, **SMALL),
    # transformers masks padding before the projection in, whose bias then fills it for the convolution after
    replace(
        case(
            "lfm3",
            "biased-without-gates-and-sandwich-norms",
            layer_types=[SLIDING, CONV, FULL],
            rope_parameters={
                FULL: {"rope_type": "default", "rope_theta": 500.0},
                SLIDING: {"rope_type": "proportional", "rope_theta": 50.0, "partial_rotary_factor": 0.25},
            },
            conv_bias=True,
            conv_L_cache=5,
            attention_bias=True,
            use_sandwich_norm=False,
            use_attention_gate=False,
            tie_word_embeddings=False,
            **SMALL,
        ),
        slot_positions=True,
    ),
]
