"""Tiny models of plbart: encoder-decoders, and decoders alone."""

from __future__ import annotations

from cases.bart import alone, whole

CASES = [
    whole("plbart", "plain"),
    alone("plbart", "plain", scale_embedding=False),
]
