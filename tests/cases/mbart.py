"""Tiny models of mbart: encoder-decoders, and decoders alone."""

from __future__ import annotations

from cases.bart import alone, whole

CASES = [
    whole("mbart", "tied", scale_embedding=True),
    whole("mbart", "untied", tie_word_embeddings=False, decoder_start_token_id=5),
    alone("mbart", "tied"),
]
