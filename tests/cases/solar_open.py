"""Tiny models of solar_open."""

from __future__ import annotations

from cases import EXPERTS, case

CASES = [
    case(
        "solar_open",
        "groups-biased",
        {key: value for key, value in EXPERTS.items() if key != "intermediate_size"},
        head_dim=10,
        attention_bias=True,
        moe_intermediate_size=24,
        n_routed_experts=6,
        n_shared_experts=2,
        n_group=3,
        topk_group=2,
        routed_scaling_factor=1.7,
    ),
]
