"""Tiny models of ernie4_5_moe."""

from __future__ import annotations

from cases import SIZES, case

CASES = [
    case(
        "ernie4_5_moe",
        "biased-untied-some-dense-layers",
        SIZES | {"intermediate_size": 40},
        num_hidden_layers=5,
        moe_intermediate_size=24,
        moe_num_experts=5,
        moe_k=3,
        moe_num_shared_experts=2,
        moe_layer_start_index=1,
        moe_layer_end_index=3,
        moe_layer_interval=2,
        use_bias=True,
        tie_word_embeddings=False,
    ),
]
