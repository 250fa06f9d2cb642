"""Tiny models of glm4."""

from __future__ import annotations

from cases import case

CASES = [
    case(
        "glm4",
        "partial-scaled",
        head_dim=12,
        rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0},
    ),
]
