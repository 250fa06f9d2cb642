"""Tiny models of m2m_100."""

from __future__ import annotations

from cases.bart import whole

CASES = [
    whole("m2m_100", "tied"),
    whole("m2m_100", "untied", tie_word_embeddings=False, scale_embedding=False, activation_function="gelu"),
]
