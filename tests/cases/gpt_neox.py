"""Tiny models of gpt_neox."""

from __future__ import annotations

from cases import case

SIZES = {"hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 3, "max_position_embeddings": 64}

CASES = [
    case("gpt_neox", "parallel", SIZES, intermediate_size=80),
    case(
        "gpt_neox",
        "sequential-unbiased-tied",
        SIZES,
        intermediate_size=80,
        use_parallel_residual=False,
        attention_bias=False,
        tie_word_embeddings=True,
        hidden_act="gelu_fast",
        rotary_pct=0.5,
        rotary_emb_base=500,
        layer_norm_eps=1e-3,
    ),
    case(
        "gpt_neox",
        "stretched",
        SIZES,
        intermediate_size=80,
        rope_scaling={"rope_type": "linear", "factor": 3.0, "partial_rotary_factor": 1.0},
    ),
]
