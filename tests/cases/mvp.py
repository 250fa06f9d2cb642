"""Tiny models of mvp: encoder-decoders, and decoders alone."""

from __future__ import annotations

from cases.bart import alone, whole

CASES = [
    whole("mvp", "plain"),
    alone("mvp", "plain", scale_embedding=True),
]
