"""Tiny models of mimo_v2_flash."""

from __future__ import annotations

from cases import EXPERTS, FULL, SLIDING, case

SPARSE = EXPERTS | {
    "num_attention_heads": 8,
    "head_dim": 12,
    "v_head_dim": 10,
    "moe_intermediate_size": 24,
    "n_routed_experts": 6,
    "sliding_window": 5,
}

CASES = [
    case("mimo_v2_flash", "plain", SPARSE),
    case(
        "mimo_v2_flash",
        "layer-types-biased-groups",
        SPARSE,
        layer_types=[FULL, SLIDING, SLIDING],
        mlp_layer_types=["sparse", "dense", "sparse"],
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.334},
        },
        attention_bias=True,
        attention_value_scale=None,
        n_group=3,
        topk_group=2,
        norm_topk_prob=False,
        routed_scaling_factor=1.7,
        tie_word_embeddings=True,
    ),
]
