"""Tiny models of deepseek_v4."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cases import SIZES, YARN, Case, case

SLIDING, SPARSE, HEAVY = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
COMPRESSED = SIZES | {
    "num_key_value_heads": 1,
    "head_dim": 10,
    "q_lora_rank": 14,
    "partial_rotary_factor": 0.6,
    "sliding_window": 5,
    "o_groups": 3,
    "o_lora_rank": 7,
    "moe_intermediate_size": 24,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "index_n_heads": 5,
    "index_head_dim": 8,
    "index_topk": 2,
    "hc_mult": 3,
    "swiglu_limit": 1.5,
    "compress_rates": {SPARSE: 2, HEAVY: 3},
}
del COMPRESSED["intermediate_size"]
KINDS = [SLIDING, SPARSE, HEAVY]


def compressed(name: str, **config: Any) -> Case:
    """Padding counts in transformers' windows of tokens, and JAX has no wider integers than 32 bits."""
    return replace(case("deepseek_v4", name, COMPRESSED, **config), slot_positions=True)


CASES = [
    compressed("each-kind", layer_types=KINDS, mlp_layer_types=["hash_moe", "moe", "moe"]),
    compressed(
        "first-settings-yarn",
        num_hidden_layers=5,
        num_hash_layers=1,
        scoring_func="sigmoid",
        compress_ratios=[128, 4, 0, 4, 128, 0],
        compress_rate_csa=3,
        compress_rate_hca=4,
        partial_rotary_factor=None,
        qk_rope_head_dim=8,
        index_topk=1,
        rope_parameters=YARN,
        rope_theta=700.0,
        compress_rope_theta=300.0,
        tie_word_embeddings=True,
    ),
    compressed(
        "default-kinds-scored",
        num_hidden_layers=4,
        mlp_layer_types=["moe"] * 4,
        hc_sinkhorn_iters=1,
        index_topk=20,
    ),
]
