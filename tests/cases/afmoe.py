"""Tiny models of afmoe."""

from __future__ import annotations

from cases import EXPERTS, FULL, SLIDING, case

SPARSE = EXPERTS | {"head_dim": 10, "moe_intermediate_size": 24, "num_experts": 5, "sliding_window": 5}

CASES = [
    case("afmoe", "scaled", SPARSE, num_hidden_layers=5, mup_enabled=True, route_scale=1.7),
    case(
        "afmoe",
        "layer-types-biased-tied",
        SPARSE,
        layer_types=[FULL, SLIDING, SLIDING],
        num_dense_layers=2,
        num_shared_experts=1,
        attention_bias=True,
        tie_word_embeddings=True,
    ),
]
