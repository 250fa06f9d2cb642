"""Tiny models of zamba."""

from __future__ import annotations

from dataclasses import replace

from cases import SIZES, case

OWN = {"mamba_d_state": 5, "mamba_dt_rank": 7, "num_key_value_heads": 2}
LINEAR, HYBRID = "linear_attention", "hybrid"
# transformers masks padding before the projection in, whose bias then fills it for the convolution after
BIASED = case(
    "zamba",
    "biased-listed",
    SIZES | OWN,
    layers_block_type=[HYBRID, LINEAR, HYBRID],
    mamba_proj_bias=True,
    mamba_conv_bias=False,
    n_mamba_heads=3,
    attention_head_dim=10,
)
CASES = [
    case("zamba", "periodic", SIZES | OWN, num_hidden_layers=6, attn_layer_period=2, attn_layer_offset=1),
    replace(BIASED, slot_positions=True),
]
