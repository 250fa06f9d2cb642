"""Tiny models of gemma."""

from __future__ import annotations

from cases import case

CASES = [
    case("gemma", "plain", head_dim=10),
    case("gemma", "one-kv-head-gelu", head_dim=16, num_key_value_heads=1, hidden_act="gelu", tp=1),
    case("gemma", "biased-untied", head_dim=8, attention_bias=True, tie_word_embeddings=False, hidden_act="relu"),
]
