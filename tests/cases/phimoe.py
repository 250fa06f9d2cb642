"""Tiny models of phimoe."""

from __future__ import annotations

from cases import EXPERTS, case

CASES = [
    case(  # transformers 5.23 always takes the short factors: with the same long ones only the gain differs
        "phimoe",
        "beyond-original-length-biased",
        EXPERTS,
        num_local_experts=5,
        router_jitter_noise=0.3,
        attention_bias=True,
        lm_head_bias=True,
        sliding_window=7,
        original_max_position_embeddings=8,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 500.0,
            "short_factor": [1.0, 1.5, 2.0, 4.0],
            "long_factor": [1.0, 1.5, 2.0, 4.0],
            "short_mscale": 1.1,
            "long_mscale": 1.4,
            "original_max_position_embeddings": 8,
        },
    ),
]
