"""Tiny models of exaone_moe."""

from __future__ import annotations

from cases import EXPERTS, FULL, SLIDING, case

SPARSE = EXPERTS | {"moe_intermediate_size": 24, "num_experts": 6, "num_shared_experts": 2}

CASES = [
    case(
        "exaone_moe",
        "pattern-groups",
        SPARSE,
        num_hidden_layers=5,
        sliding_window=5,
        sliding_window_pattern=3,
        first_k_dense_replace=2,
        n_group=3,
        topk_group=2,
        routed_scaling_factor=1.7,
    ),
    case(
        "exaone_moe",
        "layer-types-not-renormalized",
        SPARSE,
        sliding_window=5,
        layer_types=[SLIDING, FULL, SLIDING],
        mlp_layer_types=["sparse", "dense", "sparse"],
        norm_topk_prob=False,
        tie_word_embeddings=True,
    ),
]
