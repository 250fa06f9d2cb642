"""Tiny models of cohere2_moe."""

from __future__ import annotations

from cases import EXPERTS, FULL, SLIDING, case

SPARSE = EXPERTS | {"head_dim": 10, "num_experts": 5, "sliding_window": 5, "logit_scale": 0.3}

CASES = [
    case("cohere2_moe", "averaged", SPARSE, num_hidden_layers=5, num_shared_experts=2),
    case(
        "cohere2_moe",
        "sigmoid-summed-some-dense-biased-untied",
        SPARSE,
        layer_types=[FULL, SLIDING, FULL],
        mlp_layer_types=["dense", "sparse", "sparse"],
        prefix_dense_intermediate_size=28,
        num_shared_experts=1,
        shared_expert_combination_strategy="sum",
        expert_selection_fn="sigmoid",
        norm_topk_prob=False,
        rms_norm_eps=1e-4,
        attention_bias=True,
        tie_word_embeddings=False,
    ),
]
