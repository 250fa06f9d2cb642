"""Tiny models of nemotron_h."""

from __future__ import annotations

from cases import FULL, case

LINEAR = "linear_attention"
SIZES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 64,
    "mamba_num_heads": 6,
    "mamba_head_dim": 10,
    "n_groups": 2,
    "ssm_state_size": 5,
    "chunk_size": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "moe_shared_expert_intermediate_size": 56,
}
CASES = [
    case(
        "nemotron_h",
        "latent-experts",
        SIZES,
        layers_block_type=[LINEAR, "moe", FULL, LINEAR, "moe"],
        moe_latent_size=20,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=1.5,
        time_step_min=0.5,
    ),
    case(
        "nemotron_h",
        "dense-biased-experts",
        SIZES,
        layers_block_type=[LINEAR, "mlp", LINEAR, "moe", FULL, "mlp"],
        mlp_bias=True,
        mlp_hidden_act="silu",
        norm_topk_prob=False,
        use_conv_bias=False,
        conv_kernel=3,
    ),
]
