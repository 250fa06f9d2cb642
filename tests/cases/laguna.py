"""Tiny models of laguna."""

from __future__ import annotations

from cases import EXPERTS, FULL, SLIDING, YARN, case

SPARSE = EXPERTS | {
    "head_dim": 12,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 36,
    "num_experts": 5,
    "sliding_window": 5,
    "layer_types": [FULL, SLIDING, SLIDING],
}

CASES = [
    case("laguna", "heads-by-layer", SPARSE, num_attention_heads_per_layer=[6, 4, 6], moe_routed_scaling_factor=1.7),
    case(
        "laguna",
        "by-element-capped-biased-ropes-tied",
        SPARSE,
        gating="per-element",
        moe_router_logit_softcapping=0.7,
        mlp_layer_types=["sparse", "dense", "sparse"],
        rope_parameters={
            "full_attention": YARN | {"partial_rotary_factor": 0.5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
        attention_bias=True,
        tie_word_embeddings=True,
    ),
]
