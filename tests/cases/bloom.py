"""Tiny models of bloom."""

from __future__ import annotations

from cases import case

SIZES = {"hidden_size": 48, "n_head": 6, "n_layer": 3}

CASES = [
    case("bloom", "plain", SIZES),
    case("bloom", "eight-heads-untied", SIZES | {"n_head": 8}, tie_word_embeddings=False, layer_norm_epsilon=1e-3),
    case("bloom", "normed-residual", SIZES, apply_residual_connection_post_layernorm=True),
]
