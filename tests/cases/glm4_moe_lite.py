"""Tiny models of glm4_moe_lite."""

from __future__ import annotations

from cases import EXPERTS, case
from cases.deepseek_v2 import DEEPSEEK

CASES = [
    case(
        "glm4_moe_lite",
        "last-layer-dense",
        EXPERTS,
        **(DEEPSEEK | {"n_shared_experts": 1}),
        mlp_layer_types=["sparse", "sparse", "dense"],
        attention_bias=True,
        rope_interleave=False,
    ),
]
