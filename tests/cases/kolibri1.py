"""Tiny models of kolibri1."""

from __future__ import annotations

from cases import EXPERTS, FULL, SLIDING, case

SPARSE = {key: value for key, value in EXPERTS.items() if key != "intermediate_size"} | {
    "head_dim": 10,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 36,
    "num_experts": 5,
    "sliding_window": 5,
}

CASES = [
    case("kolibri1", "plain", SPARSE, num_hidden_layers=5),
    case(
        "kolibri1",
        "layer-types-renormalized",
        SPARSE,
        layer_types=[FULL, SLIDING, SLIDING],
        norm_topk_prob=True,
        tie_word_embeddings=True,
    ),
]
