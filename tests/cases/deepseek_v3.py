"""Tiny models of deepseek_v3."""

from __future__ import annotations

from cases import YARN
from cases.deepseek_v2 import deepseek

CASES = [
    deepseek(3, "groups", n_group=3, topk_group=2),
    deepseek(
        3,
        "no-renormalization-yarn-halves-biased",
        n_routed_experts=8,
        num_experts_per_tok=3,
        n_group=2,
        topk_group=1,
        norm_topk_prob=False,
        routed_scaling_factor=0.8,
        n_shared_experts=1,
        rope_interleave=False,
        rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
        attention_bias=True,
        q_lora_rank=None,
        first_k_dense_replace=2,
        tie_word_embeddings=True,
    ),
]
