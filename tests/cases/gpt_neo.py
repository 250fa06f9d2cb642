"""Tiny models of gpt_neo."""

from __future__ import annotations

from cases import case

SIZES = {"hidden_size": 48, "num_heads": 6, "num_layers": 3, "max_position_embeddings": 64, "window_size": 5}

CASES = [
    case("gpt_neo", "alternating", SIZES | {"num_layers": 4}, attention_types=[[["global", "local"], 2]]),
    case(
        "gpt_neo",
        "irregular",
        SIZES,
        attention_types=[[["local"], 2], [["global"], 1]],
        intermediate_size=80,
        tie_word_embeddings=False,
        activation_function="relu",
    ),
]
