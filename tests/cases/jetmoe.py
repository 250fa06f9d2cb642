"""Tiny models of jetmoe."""

from __future__ import annotations

from cases import case

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "kv_channels": 10,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
}

CASES = [
    case("jetmoe", "plain", SIZES),
    case(
        "jetmoe",
        "three-untied",
        SIZES,
        num_experts_per_tok=3,
        activation_function="gelu",
        rms_norm_eps=1e-3,
        tie_word_embeddings=False,
    ),
]
