"""Tiny models of glm4_moe."""

from __future__ import annotations

from cases import EXPERTS, case

CASES = [
    case(
        "glm4_moe",
        "groups-biased-qk-norm",
        EXPERTS,
        head_dim=12,
        attention_bias=True,
        use_qk_norm=True,
        moe_intermediate_size=24,
        n_routed_experts=6,
        n_shared_experts=2,
        n_group=3,
        topk_group=2,
        routed_scaling_factor=1.7,
    ),
]
