"""Tiny models of falcon."""

from __future__ import annotations

from cases import case
from cases.gpt_neox import SIZES

CASES = [
    case("falcon", "multi-query", SIZES, tp=1),
    case("falcon", "grouped", SIZES, new_decoder_architecture=True, num_kv_heads=2, tie_word_embeddings=False),
    case(
        "falcon",
        "grouped-one-norm",
        SIZES,
        new_decoder_architecture=True,
        num_kv_heads=2,
        num_ln_in_parallel_attn=1,
        ffn_hidden_size=80,
        rope_theta=500.0,
        activation="relu",
        layer_norm_epsilon=1e-3,
    ),
    case("falcon", "multi-head-sequential", SIZES, multi_query=False, parallel_attn=False, bias=True),
    # With attention by hand, transformers 5.23 adds the biases twice: to the scores and once more in the mask.
    case("falcon", "alibi", SIZES, multi_query=False, parallel_attn=False, bias=True, alibi=True, attention="sdpa"),
    case("falcon", "alibi-multi-query", SIZES, tp=1, alibi=True, attention="sdpa"),
]
