"""Tiny models of qwen3_5_moe_text."""

from __future__ import annotations

from cases import EXPERTS, case
from cases.qwen3_next import DELTA, SPARSE

SIZES = {key: value for key, value in EXPERTS.items() if key != "intermediate_size"}

CASES = [case("qwen3_5_moe_text", "plain", SIZES, **DELTA, **SPARSE)]
