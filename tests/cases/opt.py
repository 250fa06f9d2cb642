"""Tiny models of opt."""

from __future__ import annotations

from cases import case
from cases.gpt_neox import SIZES

CASES = [
    case("opt", "plain", SIZES, ffn_dim=80),
    case("opt", "post-norm-projected", SIZES, ffn_dim=80, do_layer_norm_before=False, word_embed_proj_dim=20),
    case(
        "opt",
        "unbiased-no-affine",  # Galactica
        SIZES,
        ffn_dim=80,
        enable_bias=False,
        layer_norm_elementwise_affine=False,
        activation_function="gelu",
        word_embed_proj_dim=48,
    ),
    case("opt", "projected-untied", SIZES, ffn_dim=80, word_embed_proj_dim=20, tie_word_embeddings=False),
    case("opt", "no-final-norm", SIZES, ffn_dim=80, _remove_final_layer_norm=True),
]
