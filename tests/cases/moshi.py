"""Tiny models of moshi."""

from __future__ import annotations

from cases import SIZES, case

OWN = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
CASES = [
    case("moshi", "plain", OWN, ffn_dim=160),
    case("moshi", "wide-heads", OWN, ffn_dim=80, head_dim=10, num_key_value_heads=6, hidden_act="gelu"),
]
