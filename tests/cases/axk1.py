"""Tiny models of axk1."""

from __future__ import annotations

from cases import EXPERTS, case
from cases.deepseek_v2 import DEEPSEEK

LATENT = EXPERTS | {key: value for key, value in DEEPSEEK.items() if key != "first_k_dense_replace"}

CASES = [
    case("axk1", "groups", LATENT, n_group=3, topk_group=2),
    case(
        "axk1",
        "layer-types-halves-biased",
        LATENT,
        n_group=1,
        topk_group=1,
        norm_topk_prob=False,
        mlp_layer_types=["sparse", "dense", "sparse"],
        rope_interleave=False,
        attention_bias=True,
        tie_word_embeddings=True,
    ),
]
