"""Tiny models of stablelm."""

from __future__ import annotations

from cases import case

CASES = [
    case("stablelm", "plain", partial_rotary_factor=0.5),
    case(
        "stablelm",
        "parallel-biased-qk-norms",
        partial_rotary_factor=0.75,
        use_parallel_residual=True,
        use_qkv_bias=True,
        qk_layernorm=True,
        tie_word_embeddings=True,
    ),
]
