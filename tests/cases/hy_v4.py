"""Tiny models of hy_v4."""

from __future__ import annotations

from cases import YARN, case
from cases.axk1 import LATENT

STREAMS = LATENT | {"index_topk": 5, "index_head_dim": 14, "index_n_heads": 7, "hc_mult": 3, "swiglu_limit": 1.5}

CASES = [
    case("hy_v4", "default-kinds", STREAMS),
    case(
        "hy_v4",
        "shared-choices-yarn-biased",
        STREAMS,
        num_hidden_layers=4,
        indexer_types=["full", "shared", "full", "shared"],
        mlp_layer_types=["sparse", "dense", "sparse", "sparse"],
        n_group=3,
        topk_group=2,
        norm_topk_prob=False,
        hc_magnitude=1.7,
        hc_eps=0.01,
        rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
        attention_bias=True,
    ),
]
