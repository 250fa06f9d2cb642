"""Tiny models of gemma4_unified_text."""

from __future__ import annotations

from cases import case
from cases.gemma4_text import SMALL

SIZES = {key: value for key, value in SMALL.items() if "per_layer" not in key}
CASES = [
    case("gemma4_unified_text", "keys-as-values", SIZES, num_hidden_layers=7, attention_k_eq_v=True),
]
