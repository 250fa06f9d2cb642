"""Tiny models of fsmt. With a cache, transformers' decoder sees tokens behind those that come together."""

from __future__ import annotations

from cases import Case
from cases.bart import SIZES

SPECIAL = {"src_vocab_size": 97, "tgt_vocab_size": 103, "use_cache": False}
WAVES = tuple(f"model.{tower}coder.embed_positions.weight" for tower in ("en", "de"))

CASES = [Case("fsmt-two-vocabularies", "fsmt", SIZES | SPECIAL, seq2seq=True, not_exported=WAVES)]
