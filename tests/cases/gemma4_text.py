"""Tiny models of gemma4_text."""

from __future__ import annotations

from cases import FULL, SLIDING, case

ROPES = {
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 5000.0},
    SLIDING: {"rope_type": "default", "rope_theta": 50.0},
}
SMALL = {"head_dim": 8, "global_head_dim": 12, "sliding_window": 5}
SMALL |= {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 6, "num_key_value_heads": 2}
SMALL |= {"num_hidden_layers": 3, "max_position_embeddings": 64}

CASES = [
    case(
        "gemma4_text",
        "inputs-for-layers-shared-keys",
        SMALL,
        num_hidden_layers=6,
        layer_types=[SLIDING, FULL, SLIDING, FULL, SLIDING, FULL],
        num_kv_shared_layers=3,
        use_double_wide_mlp=True,
        hidden_size_per_layer_input=10,
        vocab_size_per_layer_input=97,
    ),
    case(
        "gemma4_text",
        "keys-as-values-experts",
        SMALL,
        layer_types=[SLIDING, FULL, FULL],
        hidden_size_per_layer_input=0,
        attention_k_eq_v=True,
        num_global_key_value_heads=3,
        tp=1,
        rope_parameters=ROPES,
        attention_bias=True,
        enable_moe_block=True,
        num_experts=5,
        top_k_experts=2,
        moe_intermediate_size=28,
        tie_word_embeddings=False,
        final_logit_softcapping=3.0,
    ),
    case(
        "gemma4_text",
        "inputs-for-layers-experts",
        SMALL,
        hidden_size_per_layer_input=6,
        vocab_size_per_layer_input=97,
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=3,
        moe_intermediate_size=20,
    ),
]
