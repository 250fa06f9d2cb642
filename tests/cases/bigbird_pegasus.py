"""Tiny decoders of bigbird_pegasus."""

from __future__ import annotations

from dataclasses import replace

from cases.bart import UNUSED, alone

UNBIASED = tuple(name for name in UNUSED if not name.endswith("_proj.bias"))

CASES = [
    alone("bigbird_pegasus", "biased", use_bias=True, scale_embedding=False),
    replace(alone("bigbird_pegasus", "plain"), not_exported=UNBIASED),
]
