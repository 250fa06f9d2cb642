"""Tiny models of granitemoehybrid."""

from __future__ import annotations

from cases import EXPERTS, FULL, SIZES, case
from cases.bamba import MAMBA
from cases.granite import MULTIPLIERS

KINDS = ["linear_attention", FULL, "linear_attention"]
OWN = MAMBA | MULTIPLIERS | {"layer_types": KINDS, "shared_intermediate_size": 56}
CASES = [
    case("granitemoehybrid", "experts", EXPERTS | OWN, num_local_experts=5, position_embedding_type="nope"),
    case(
        "granitemoehybrid",
        "dense-rotated-biased",
        SIZES | OWN,
        num_local_experts=0,
        position_embedding_type="rope",
        attention_bias=True,
        mamba_conv_bias=False,
        tie_word_embeddings=True,
    ),
]
