"""Tiny models of jamba."""

from __future__ import annotations

from cases import EXPERTS, SIZES, case

OWN = {"attn_layer_period": 3, "attn_layer_offset": 1, "mamba_d_state": 5}
CASES = [
    case("jamba", "experts", EXPERTS | OWN, num_experts=5, num_hidden_layers=4, mamba_dt_rank=7),
    case("jamba", "dense-tied", SIZES | OWN, num_experts=1, mamba_conv_bias=False, tie_word_embeddings=True),
]
