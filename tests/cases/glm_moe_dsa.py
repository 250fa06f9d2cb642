"""Tiny models of glm_moe_dsa."""

from __future__ import annotations

from cases import case
from cases.deepseek_v32 import INDEXED

CASES = [
    case("glm_moe_dsa", "shared-choices", INDEXED, num_hidden_layers=6, index_topk_freq=3),
    case("glm_moe_dsa", "choices-of-each-layer", INDEXED, index_topk=20, index_topk_pattern="FFS", n_group=2),
]
