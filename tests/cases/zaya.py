"""Tiny models of zaya."""

from __future__ import annotations

from dataclasses import replace

from cases import SIZES, case

SMALL = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
SMALL |= {"head_dim": 16, "moe_intermediate_size": 28, "num_experts": 4, "router_hidden_size": 14}
ROPE = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.75}

CASES = [
    case("zaya", "plain", SMALL),
    # transformers masks padding before its projections, whose biases then fill it for the convolutions after
    replace(
        case(
            "zaya",
            "windows-biased-untied-wider-convolutions",
            SMALL,
            layer_types=["hybrid_sliding", "hybrid", "hybrid_sliding"],
            sliding_window=5,
            rope_parameters={"hybrid": ROPE, "hybrid_sliding": ROPE | {"rope_theta": 50.0}},
            attention_bias=True,
            lm_head_bias=True,
            tie_word_embeddings=False,
            cca_time0=3,
            cca_time1=4,
        ),
        slot_positions=True,
    ),
]
