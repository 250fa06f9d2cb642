"""Tiny models of xglm."""

from __future__ import annotations

from cases import case

SIZES = {"d_model": 48, "attention_heads": 6, "num_layers": 3, "ffn_dim": 80, "max_position_embeddings": 64}

CASES = [
    case("xglm", "scaled", SIZES),
    case(
        "xglm", "unscaled-untied", SIZES, scale_embedding=False, activation_function="relu", tie_word_embeddings=False
    ),
]
