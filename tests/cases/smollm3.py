"""Tiny models of smollm3."""

from __future__ import annotations

from cases import FULL, SLIDING, case

CASES = [
    case("smollm3", "interval", num_hidden_layers=5),
    case(
        "smollm3",
        "no-rope-layers-slide",
        no_rope_layers=[0, 1, 0],
        use_sliding_window=True,
        sliding_window=5,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
    ),
    case(
        "smollm3",
        "layer-types",
        no_rope_layers=[1, 0, 1],
        use_sliding_window=True,
        sliding_window=5,
        layer_types=[SLIDING, FULL, FULL],
    ),
]
