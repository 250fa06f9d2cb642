"""Tiny models of granitemoe_swa."""

from __future__ import annotations

from cases import case
from cases.granitemoeshared import SPARSE

CASES = [
    case(
        "granitemoe_swa",
        "thetas",
        SPARSE,
        shared_intermediate_size=28,
        sliding_window=5,
        layer_rope_theta=[0, 10000.0, 500.0],
    ),
]
