"""Tiny models of lfm2."""

from __future__ import annotations

from dataclasses import replace

from cases import FULL, case

CONV = "conv"
MIXED = {"layer_types": [CONV, FULL, CONV], "norm_eps": 1e-3}

CASES = [
    case("lfm2", "plain", **MIXED, block_multiple_of=10, block_ffn_dim_multiplier=1.3),
    # transformers masks padding before the projection in, whose bias then fills it for the convolution after
    replace(
        case(
            "lfm2",
            "biased-untied-as-wide-as-said",
            full_attn_idxs=[1, 2],
            conv_bias=True,
            conv_L_cache=5,
            block_auto_adjust_ff_dim=False,
            tie_word_embeddings=False,
        ),
        slot_positions=True,
    ),
]
