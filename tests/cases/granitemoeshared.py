"""Tiny models of granitemoeshared."""

from __future__ import annotations

from cases import EXPERTS, case
from cases.granite import MULTIPLIERS

SPARSE = EXPERTS | MULTIPLIERS | {"num_local_experts": 5}

CASES = [
    case("granitemoeshared", "multiplied", SPARSE, shared_intermediate_size=28),
    case("granitemoeshared", "none-shared-biased-tied", SPARSE, attention_bias=True, tie_word_embeddings=True),
]
