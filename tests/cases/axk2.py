"""Tiny models of axk2."""

from __future__ import annotations

from cases import YARN, case
from cases.axk1 import LATENT

INDEXED = LATENT | {"index_topk": 5, "index_head_dim": 14, "index_n_heads": 7, "gated_norm_rank": 6}

CASES = [
    case("axk2", "groups", INDEXED, n_group=3, topk_group=2),
    case(
        "axk2",
        "no-groups-yarn-biased",
        INDEXED,
        norm_topk_prob=False,
        mlp_layer_types=["sparse", "dense", "sparse"],
        rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
        attention_bias=True,
        tie_word_embeddings=True,
    ),
]
