"""Tiny models of flex_olmo."""

from __future__ import annotations

from cases import EXPERTS, case

CASES = [
    case("flex_olmo", "biased-renormalized", EXPERTS, num_experts=5, norm_topk_prob=True, attention_bias=True),
]
