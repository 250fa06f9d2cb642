"""Tiny models of mellum."""

from __future__ import annotations

from cases import EXPERTS, FULL, SLIDING, YARN, case

SPARSE = EXPERTS | {"head_dim": 10, "moe_intermediate_size": 24, "num_experts": 5, "sliding_window": 5}

CASES = [
    case(
        "mellum",
        "ropes",
        SPARSE,
        layer_types=[FULL, SLIDING, SLIDING],
        rope_parameters={"full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}},
    ),
    case(
        "mellum",
        "biased-some-dense-tied",
        SPARSE,
        attention_bias=True,
        norm_topk_prob=False,
        layer_types=[FULL, SLIDING, SLIDING],
        mlp_layer_types=["sparse", "dense", "sparse"],
        tie_word_embeddings=True,
    ),
]
