"""Tiny models of cohere."""

from __future__ import annotations

from cases import case

CASES = [
    case("cohere", "plain", logit_scale=0.3),
    case("cohere", "qk-norm-biased-untied", use_qk_norm=True, attention_bias=True, tie_word_embeddings=False),
]
