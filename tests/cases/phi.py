"""Tiny models of phi."""

from __future__ import annotations

from cases import case

CASES = [
    case("phi", "plain", head_dim=10, partial_rotary_factor=0.4, num_key_value_heads=None),
    case("phi", "qk-norm-tied", qk_layernorm=True, tie_word_embeddings=True, partial_rotary_factor=0.75),
]
