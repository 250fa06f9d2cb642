"""Tiny decoders of whisper."""

from __future__ import annotations

from typing import Any

from cases import Case
from cases.bart import SIZES as BART, UNUSED

SPECIAL = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 2)
SIZES = BART | SPECIAL | {"max_target_positions": 32, "begin_suppress_tokens": [5]}
UNREAD = tuple(name for name in UNUSED if not name.endswith("k_proj.bias"))


def whisper(name: str, **config: Any) -> Case:
    return Case(f"whisper-{name}", "whisper", SIZES | config, slot_positions=True, not_exported=UNREAD)


CASES = [whisper("plain", scale_embedding=True), whisper("untied", tie_word_embeddings=False)]
