"""Tiny models of blenderbot-small: encoder-decoders, and decoders alone."""

from __future__ import annotations

from cases.bart import alone, whole

CASES = [
    whole("blenderbot-small", "plain", scale_embedding=True),
    alone("blenderbot-small", "plain"),
]
