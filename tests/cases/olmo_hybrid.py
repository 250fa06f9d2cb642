"""Tiny models of olmo_hybrid."""

from __future__ import annotations

from cases import FULL, case

LINEAR = "linear_attention"

# Keys have as many channels as values: transformers 5.23 saves convolutions in three equal parts, right or not.
CASES = [
    case("olmo_hybrid", "rotated-biased", attention_bias=True, linear_num_key_heads=3, linear_value_head_dim=6),
    case(
        "olmo_hybrid",
        "no-positions-positive",
        layer_types=[FULL, LINEAR, FULL],
        linear_allow_neg_eigval=False,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=10,
        linear_value_head_dim=5,
        linear_conv_kernel_dim=3,
        rope_parameters={"rope_type": "default", "rope_theta": None},
        tie_word_embeddings=True,
    ),
]
