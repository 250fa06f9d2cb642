"""Tiny models of olmoe."""

from __future__ import annotations

from cases import EXPERTS, case

CASES = [
    case("olmoe", "plain", EXPERTS, num_experts=6),
    case(
        "olmoe",
        "clipped-biased-renormalized",
        EXPERTS,
        num_experts=5,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        clip_qkv=0.8,
        attention_bias=True,
        tie_word_embeddings=True,
    ),
]
