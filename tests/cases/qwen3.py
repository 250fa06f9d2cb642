"""Tiny models of qwen3."""

from __future__ import annotations

from cases import case

CASES = [
    case("qwen3", "plain", head_dim=10, tie_word_embeddings=True),
    case(
        "qwen3",
        "biased-sliding",
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=2,
    ),
]
