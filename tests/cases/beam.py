"""Tiny models of beam."""

from __future__ import annotations

from cases import EXPERTS, FULL, SLIDING, case

SPARSE = EXPERTS | {
    "head_dim": 10,
    "moe_intermediate_size": 24,
    "num_experts": 6,
    "n_group": 3,
    "topk_group": 2,
    "sliding_window": 5,
    "final_logit_softcapping": 3.0,
}

CASES = [
    case("beam", "plain", SPARSE, num_hidden_layers=4),
    case(
        "beam",
        "layer-types-biased-tied",
        SPARSE,
        layer_types=[FULL, SLIDING, SLIDING],
        mlp_layer_types=["sparse", "dense", "sparse"],
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 500.0},
            "sliding_attention": None,
        },
        attention_bias=True,
        norm_topk_prob=False,
        final_logit_softcapping=None,
        tie_word_embeddings=True,
    ),
]
