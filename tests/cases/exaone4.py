"""Tiny models of exaone4."""

from __future__ import annotations

from cases import FULL, case

CASES = [
    case("exaone4", "window", num_hidden_layers=5, sliding_window=5, tie_word_embeddings=True),
    case("exaone4", "no-window", sliding_window=None, layer_types=[FULL] * 3),
]
