"""Tiny models of olmo."""

from __future__ import annotations

from cases import case

CASES = [
    case("olmo", "plain", num_key_value_heads=None),
    case("olmo", "clipped-biased-tied", clip_qkv=0.5, attention_bias=True, tie_word_embeddings=True),
]
