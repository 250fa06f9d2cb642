"""Tiny models of bigbird_pegasus: whole ones, with blocks if there are more than 18 tokens, and decoders alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cases.bart import UNUSED, alone, whole

UNBIASED = tuple(name for name in UNUSED if not name.endswith("_proj.bias"))
BLOCKS: dict[str, Any] = {"block_size": 2, "num_random_blocks": 2}

CASES = [
    replace(whole("bigbird_pegasus", "blocks", **BLOCKS, use_bias=True, scale_embedding=False), length=25),
    replace(whole("bigbird_pegasus", "full", attention_type="original_full", tie_word_embeddings=False), length=25),
    alone("bigbird_pegasus", "biased", use_bias=True, scale_embedding=False),
    replace(alone("bigbird_pegasus", "plain"), not_exported=UNBIASED),
]
