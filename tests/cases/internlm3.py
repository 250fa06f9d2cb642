"""Tiny models of internlm3."""

from __future__ import annotations

from cases import case

CASES = [
    case("internlm3", "plain", head_dim=10),
    case("internlm3", "biased-tied", qkv_bias=True, bias=True, tie_word_embeddings=True),
]
