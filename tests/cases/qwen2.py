"""Tiny models of qwen2."""

from __future__ import annotations

from cases import FULL, SLIDING, case

CASES = [
    case("qwen2", "plain", sliding_window=5, max_window_layers=1),
    case("qwen2", "upper-layers-slide", use_sliding_window=True, sliding_window=5, max_window_layers=1),
    case(
        "qwen2",
        "layer-types",
        use_sliding_window=True,
        sliding_window=5,
        layer_types=[SLIDING, FULL, SLIDING],
        tie_word_embeddings=True,
    ),
]
