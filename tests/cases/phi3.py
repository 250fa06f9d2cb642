"""Tiny models of phi3."""

from __future__ import annotations

from typing import Any

from cases import Case, case

LONGROPE: dict[str, Any] = {"rope_type": "longrope", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
LONGROPE |= {"short_factor": [1.0, 1.5], "long_factor": [2.0, 5.0]}


def phi3(name: str, original: int, *, growing_rope: bool = False) -> Case:
    """Sequences of 13 tokens are below or beyond the `original` length, or outgrow it while being decoded."""
    config = {
        "original_max_position_embeddings": original,
        "rope_parameters": dict(LONGROPE),
        "max_position_embeddings": 64,
    }
    return case("phi3", name, growing_rope=growing_rope, **config)


CASES = [
    case("phi3", "window", sliding_window=5, tie_word_embeddings=True),
    phi3("longrope-below", 32),
    phi3("longrope-beyond", 8),
    phi3("longrope-outgrown", 11, growing_rope=True),
]
