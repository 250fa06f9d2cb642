"""Tiny models of vaultgemma."""

from __future__ import annotations

from cases import case
from cases.gemma2 import SMALL_CAPS

CASES = [
    case("vaultgemma", "capped", head_dim=10, query_pre_attn_scalar=12, sliding_window=5, **SMALL_CAPS),
    case("vaultgemma", "biased-untied", head_dim=8, sliding_window=5, attention_bias=True, tie_word_embeddings=False),
]
