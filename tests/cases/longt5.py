"""Tiny models of longt5: windows and blocks that the length is no multiple of."""

from __future__ import annotations

from typing import Any

from cases import Case
from cases.t5 import SIZES


def longt5(name: str, **config: Any) -> Case:
    return Case(f"longt5-{name}", "longt5", SIZES | {"local_radius": 2} | config, seq2seq=True)


CASES = [
    longt5("local", feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    longt5("transient-global", encoder_attention_type="transient-global", global_block_size=3),
]
