"""Tiny models of pegasus: encoder-decoders, and decoders alone."""

from __future__ import annotations

from cases.bart import alone, whole

CASES = [
    whole("pegasus", "plain", computed=True, scale_embedding=True, activation_function="relu"),
    alone("pegasus", "plain", computed=True),
]
