"""Tiny models of kimi_linear."""

from __future__ import annotations

from cases import EXPERTS, FULL, case

LINEAR = "linear_attention"
LATENT = {"kv_lora_rank": 10, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 8, "num_key_value_heads": 6}
DELTA = {"linear_num_heads": 4, "linear_head_dim": 10}
SPARSE = {"num_experts": 6, "moe_intermediate_size": 24, "num_shared_experts": 2}
ALL = EXPERTS | LATENT | DELTA | SPARSE

CASES = [
    case("kimi_linear", "plain", ALL, layer_types=[LINEAR, FULL, LINEAR]),
    case(
        "kimi_linear",
        "groups-q-latent-biased",
        ALL,
        layer_types=[FULL, LINEAR, FULL],
        mlp_layer_types=["sparse", "dense", "sparse"],
        q_lora_rank=14,
        attention_bias=True,
        num_expert_group=3,
        topk_group=2,
        moe_renormalize=False,
        linear_conv_kernel_dim=3,
    ),
    case(
        "kimi_linear",
        "settings-of-the-first-files",
        ALL,
        num_hidden_layers=4,
        linear_attn_config={
            "full_attn_layers": [2, 4],
            "kda_layers": [1, 3],
            "num_heads": 2,
            "head_dim": 12,
            "short_conv_kernel_size": 5,
        },
        first_k_dense_replace=2,
    ),
]
