"""Tiny models of ministral3."""

from __future__ import annotations

from cases import YARN, case

CASES = [
    case(
        "ministral3",
        "growing-scale-window",
        head_dim=10,
        sliding_window=7,
        rope_parameters=YARN
        | {"original_max_position_embeddings": 4, "mscale": 0.7, "mscale_all_dim": 0.5, "llama_4_scaling_beta": 0.6},
    ),
]
