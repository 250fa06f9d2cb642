"""Tiny models of inkling_text."""

from __future__ import annotations

from dataclasses import replace

from cases import EXPERTS, case

SMALL = EXPERTS | {"head_dim": 10, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 12}
SMALL |= {"sliding_window_size": 5, "rel_extent": 7, "d_rel": 3, "moe_intermediate_size": 28, "n_routed_experts": 5}
SMALL |= {"logits_mup_width_multiplier": 1.5, "route_scale": 3.0}

CASES = [
    case(
        "inkling_text",
        "dense-and-experts",
        SMALL,
        layer_types=["hybrid_sliding", "hybrid", "hybrid_sliding"],
        mlp_layer_types=["dense", "sparse", "sparse"],
    ),
    # positions that scales grow by count padding in transformers
    replace(
        case(
            "inkling_text",
            "older-sizes-growing-scales-fewer-logits",
            SMALL,
            local_layer_ids=[1],
            dense_mlp_idx=1,
            dense_intermediate_size=56,
            n_shared_experts=1,
            conv_kernel_size=3,
            log_scaling_n_floor=4,
            log_scaling_alpha=0.7,
            unpadded_vocab_size=91,
        ),
        slot_positions=True,
    ),
]
