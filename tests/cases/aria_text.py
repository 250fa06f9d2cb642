"""Tiny models of aria_text."""

from __future__ import annotations

from cases import SIZES, case

SPARSE = SIZES | {"intermediate_size": 28, "moe_num_experts": 5, "moe_topk": 3}

CASES = [
    case("aria_text", "plain", SPARSE),
    case(
        "aria_text",
        "biased-one-shared-tied",
        SPARSE,
        head_dim=10,
        hidden_act="gelu",
        moe_num_shared_experts=1,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
    ),
]
