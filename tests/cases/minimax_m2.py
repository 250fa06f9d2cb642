"""Tiny models of minimax_m2."""

from __future__ import annotations

from cases import EXPERTS, case

CASES = [
    case("minimax_m2", "part-of-each-head-turned", EXPERTS, num_local_experts=5, head_dim=10, rotary_dim=6),
]
