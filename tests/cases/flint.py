"""Tiny models of flint."""

from __future__ import annotations

from cases import EXPERTS, FULL, SLIDING, case

SPARSE = EXPERTS | {
    "head_dim": 10,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 36,
    "num_experts": 5,
    "sliding_window": 5,
}

CASES = [
    case("flint", "plain", SPARSE, num_hidden_layers=5),
    case(
        "flint",
        "layer-types-biased-steps",
        SPARSE,
        layer_types=[FULL, SLIDING, SLIDING],
        attention_bias=True,
        norm_topk_prob=False,
        decoder_sparse_step=2,
        mlp_only_layers=[],
        tie_word_embeddings=True,
    ),
]
