"""Tiny models of hy_v3."""

from __future__ import annotations

from cases import EXPERTS, case

SPARSE = EXPERTS | {"head_dim": 10, "moe_intermediate_size": 24, "num_experts": 5, "router_scaling_factor": 1.7}

CASES = [
    case("hy_v3", "plain", SPARSE),
    case(
        "hy_v3",
        "biased-two-shared",
        SPARSE,
        attention_bias=True,
        mlp_bias=True,
        num_shared_experts=2,
        mlp_layer_types=["sparse", "dense", "sparse"],
        tie_word_embeddings=True,
    ),
]
