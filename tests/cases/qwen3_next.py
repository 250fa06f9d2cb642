"""Tiny models of qwen3_next."""

from __future__ import annotations

from cases import EXPERTS, case

LINEAR, FULL = "linear_attention", "full_attention"
DELTA = {
    "head_dim": 12,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 10,
    "layer_types": [LINEAR, FULL, LINEAR],
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
}
SPARSE = {"num_experts": 5, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 36}

CASES = [
    case("qwen3_next", "plain", EXPERTS, **DELTA, **SPARSE),
    case(
        "qwen3_next",
        "biased-dense-first-wide-kernel",
        EXPERTS,
        **DELTA | {"linear_num_key_heads": 4, "linear_conv_kernel_dim": 6, "layer_types": None, "num_hidden_layers": 4},
        **SPARSE,
        attention_bias=True,
        mlp_only_layers=[0],
        norm_topk_prob=False,
    ),
]
