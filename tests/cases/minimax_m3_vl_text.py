"""Tiny models of minimax_m3_vl_text."""

from __future__ import annotations

from dataclasses import replace

from cases import EXPERTS, FULL, case

SPARSE = "minimax_m3_sparse"
SMALL = EXPERTS | {
    "num_local_experts": 5,
    "head_dim": 10,
    "shared_intermediate_size": 24,
    "dense_intermediate_size": 56,
}
SMALL |= {"index_n_heads": 2, "index_head_dim": 14, "index_block_size": 3, "index_topk_blocks": 2, "bos_token_id": 1}
SMALL |= {"swiglu_limit": 0.8, "swiglu_alpha": 1.3}

CASES = [
    replace(found, slot_positions=True)  # blocks of transformers begin at slots, those of unpadded rows at tokens
    for found in [
        case(
            "minimax_m3_vl_text",
            "two-of-five-blocks",
            SMALL,
            layer_types=[SPARSE, FULL, SPARSE],
            mlp_layer_types=["dense", "sparse", "sparse"],
            rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.6},
        ),
        case(
            "minimax_m3_vl_text",
            "older-spellings-more-local-blocks-tied",
            SMALL,
            sparse_attention_config={
                "sparse_num_index_heads": 3,
                "sparse_index_dim": 10,
                "sparse_block_size": 2,
                "sparse_topk_blocks": 4,
                "sparse_local_block": 2,
                "sparse_attention_freq": [0, 1, 1],
            },
            moe_layer_freq=[0, 1, 1],
            tie_word_embeddings=True,
        ),
    ]
]
