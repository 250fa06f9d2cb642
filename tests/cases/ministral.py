"""Tiny models of ministral."""

from __future__ import annotations

from cases import FULL, SLIDING, case

CASES = [
    case("ministral", "layer-types", head_dim=10, sliding_window=5, layer_types=[SLIDING, FULL, SLIDING]),
]
