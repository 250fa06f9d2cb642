"""Tiny models of umt5. transformers scales a head of its own, too, whatever the config says."""

from __future__ import annotations

from cases import Case
from cases.t5 import SIZES

CASES = [Case("umt5-plain", "umt5", SIZES, seq2seq=True, own_head=True)]
