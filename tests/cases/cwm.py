"""Tiny models of cwm."""

from __future__ import annotations

from cases import FULL, LLAMA3, SLIDING, case

CASES = [
    case("cwm", "default-layer-types", num_hidden_layers=5, head_dim=10, sliding_window=5, rope_parameters=LLAMA3),
    case(
        "cwm",
        "layer-types-biased-tied",
        head_dim=8,
        sliding_window=5,
        layer_types=[SLIDING, FULL, SLIDING],
        mlp_bias=True,
    ),
]
