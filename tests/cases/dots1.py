"""Tiny models of dots1."""

from __future__ import annotations

from cases import EXPERTS, case

CASES = [
    case(
        "dots1",
        "upper-layers-slide-biased",
        EXPERTS,
        head_dim=10,
        attention_bias=True,
        sliding_window=5,
        max_window_layers=2,
        first_k_dense_replace=1,
        moe_intermediate_size=24,
        n_routed_experts=6,
        n_shared_experts=2,
        n_group=2,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=1.7,
    ),
]
