"""Tiny models of helium."""

from __future__ import annotations

from cases import case

CASES = [
    case("helium", "plain", head_dim=8, rms_norm_eps=1e-5),
    case("helium", "biased-tied", head_dim=8, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
]
