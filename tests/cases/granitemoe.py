"""Tiny models of granitemoe."""

from __future__ import annotations

from cases import EXPERTS, case
from cases.granite import MULTIPLIERS

CASES = [
    case("granitemoe", "multiplied-biased", EXPERTS, **MULTIPLIERS, num_local_experts=5, attention_bias=True),
]
