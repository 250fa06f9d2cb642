"""Tiny models of gpt2."""

from __future__ import annotations

from cases import case

SIZES = {"n_embd": 48, "n_head": 6, "n_layer": 3, "n_positions": 64}

CASES = [
    case("gpt2", "plain", SIZES),
    case(
        "gpt2",
        "scaled-by-layer",
        SIZES,
        scale_attn_by_inverse_layer_idx=True,
        reorder_and_upcast_attn=True,
        n_inner=80,
        activation_function="gelu",
        layer_norm_epsilon=1e-3,
    ),
    case("gpt2", "unscaled-untied", SIZES, scale_attn_weights=False, tie_word_embeddings=False),
]
