"""Tiny models of mistral."""

from __future__ import annotations

from cases import case

CASES = [
    case("mistral", "window", sliding_window=5),
    case("mistral", "no-window-wide-heads", sliding_window=None, head_dim=10, tie_word_embeddings=True),
]
