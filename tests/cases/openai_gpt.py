"""Tiny models of openai-gpt."""

from __future__ import annotations

from cases import case
from cases.gpt2 import SIZES

CASES = [
    case("openai-gpt", "plain", SIZES),
    case("openai-gpt", "silu-untied", SIZES, afn="silu", layer_norm_epsilon=1e-3, tie_word_embeddings=False),
]
