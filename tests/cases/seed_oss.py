"""Tiny models of seed_oss."""

from __future__ import annotations

from cases import case

CASES = [
    case("seed_oss", "biased", head_dim=10, attention_out_bias=True, mlp_bias=True),
]
