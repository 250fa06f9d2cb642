"""Tiny models of qwen3_moe."""

from __future__ import annotations

from cases import EXPERTS, case

CASES = [
    case("qwen3_moe", "plain", EXPERTS, num_experts=6, moe_intermediate_size=24, head_dim=10),
    case(
        "qwen3_moe",
        "renormalized-biased-sliding-dense-first",
        EXPERTS,
        num_experts=5,
        num_experts_per_tok=3,
        moe_intermediate_size=24,
        norm_topk_prob=True,
        attention_bias=True,
        mlp_only_layers=[0],
        use_sliding_window=True,
        sliding_window=5,
        tie_word_embeddings=True,
    ),
]
