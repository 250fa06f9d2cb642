"""Tiny models of hunyuan_v1_moe."""

from __future__ import annotations

from cases import SIZES, case

CASES = [
    case(
        "hunyuan_v1_moe",
        "alpha-biased-choices-by-layer",
        SIZES | {"intermediate_size": 40},
        num_experts=5,
        moe_topk=[2, 3, 1],
        head_dim=10,
        attention_bias=True,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 500.0, "alpha": 20.0, "factor": 1.0},
        tie_word_embeddings=True,
    ),
]
