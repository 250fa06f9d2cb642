"""Tiny models of pegasus_x, with blocks that the length is no multiple of."""

from __future__ import annotations

from typing import Any

from cases.bart import whole

SIZES: dict[str, Any] = {"num_global_tokens": 3, "block_size": 4}

CASES = [
    whole("pegasus_x", "staggered", **SIZES),
    whole("pegasus_x", "untied", **SIZES, stagger_local_blocks=False, tie_word_embeddings=False, scale_embedding=False),
]
