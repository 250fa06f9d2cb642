"""Tiny models of blenderbot: encoder-decoders, and decoders alone."""

from __future__ import annotations

from cases.bart import alone, whole

CASES = [
    whole("blenderbot", "plain", scale_embedding=True),
    alone("blenderbot", "plain"),
]
