"""Tiny models of deepseek_v32."""

from __future__ import annotations

from cases import EXPERTS, YARN, case
from cases.deepseek_v2 import DEEPSEEK

INDEXED = EXPERTS | DEEPSEEK | {"index_topk": 5, "index_head_dim": 14, "index_n_heads": 7}

CASES = [
    case("deepseek_v32", "five-of-thirteen", INDEXED, n_group=3, topk_group=2),
    case(
        "deepseek_v32",
        "yarn-biased",
        INDEXED,
        n_group=2,
        topk_group=1,
        n_shared_experts=1,
        norm_topk_prob=False,
        mlp_layer_types=["sparse", "dense", "sparse"],
        attention_bias=True,
        rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
        tie_word_embeddings=True,
    ),
]
