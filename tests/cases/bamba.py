"""Tiny models of bamba."""

from __future__ import annotations

from cases import SIZES, case

MAMBA = {"mamba_n_heads": 6, "mamba_d_state": 5, "mamba_n_groups": 2, "mamba_chunk_size": 8}
CASES = [
    case("bamba", "plain", SIZES | MAMBA, attn_layer_indices=[1]),
    case(
        "bamba",
        "biased-tied",
        SIZES | MAMBA,
        attn_layer_indices=[0, 2],
        attention_bias=True,
        mlp_bias=True,
        mamba_conv_bias=False,
        mamba_d_conv=3,
        mamba_d_head=24,
        mamba_expand=3,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    ),
]
