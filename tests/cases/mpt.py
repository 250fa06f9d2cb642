"""Tiny models of mpt."""

from __future__ import annotations

from cases import case

SIZES = {"d_model": 48, "n_heads": 6, "n_layers": 3, "max_seq_len": 64}

CASES = [
    case("mpt", "plain", SIZES),
    case(
        "mpt",
        "clipped-steep-untied",
        SIZES,
        attn_config={"clip_qkv": 0.7, "softmax_scale": 0.5, "attn_impl": "triton"},
        norm_type="layernorm",
        tie_word_embeddings=False,
        layer_norm_epsilon=1e-3,
    ),
]
