"""Tiny models of nllb-moe. Their experts have places enough: tests/test_capacity.py has what happens if not."""

from __future__ import annotations

from cases.bart import whole

EXPERTS = {"num_experts": 4, "encoder_sparse_step": 2, "decoder_sparse_step": 1}
CASES = [
    whole(
        "nllb-moe",
        "best-first-biased",
        **EXPERTS,
        batch_prioritized_routing=True,
        router_bias=True,
        tie_word_embeddings=False,
    ),
    whole(
        "nllb-moe",
        "normalized-before",
        **EXPERTS | {"decoder_sparse_step": 0},
        normalize_router_prob_before_dropping=True,
        moe_eval_capacity_token_fraction=-1.0,
        moe_token_dropout=0.0,
    ),
]
