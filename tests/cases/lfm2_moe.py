"""Tiny models of lfm2_moe."""

from __future__ import annotations

from cases import EXPERTS, FULL, case

CONV = "conv"
SPARSE = {"num_experts": 5, "moe_intermediate_size": 24, "num_dense_layers": 1}

CASES = [
    case("lfm2_moe", "plain", EXPERTS, **SPARSE, layer_types=[CONV, FULL, CONV], routed_scaling_factor=1.7),
    case(
        "lfm2_moe",
        "no-bias-no-sum-untied",
        EXPERTS,
        **SPARSE,
        layer_types=[FULL, CONV, FULL],
        use_expert_bias=False,
        norm_topk_prob=False,
        tie_word_embeddings=False,
    ),
]
