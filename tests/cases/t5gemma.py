"""Tiny models of t5gemma."""

from __future__ import annotations

from typing import Any

from cases import SIZES, SLIDING, Case

ENCODER = SIZES | {"head_dim": 10, "query_pre_attn_scalar": 11, "sliding_window": 5, "attn_logit_softcapping": 2.0}
DECODER = ENCODER | {
    "hidden_size": 40,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 12,
    "sliding_window": 3,
    "final_logit_softcapping": 3.0,
}


def t5gemma(name: str, encoder: dict[str, Any], decoder: dict[str, Any], **config: Any) -> Case:
    towers = {"encoder": ENCODER | encoder, "decoder": DECODER | decoder}
    return Case(f"t5gemma-{name}", "t5gemma", {"vocab_size": 97, **towers, **config}, seq2seq=True)


CASES = [
    t5gemma("two-sizes", {}, {}),
    t5gemma(
        "untied-biased",
        {"attention_bias": True, "attn_logit_softcapping": None, "layer_types": [SLIDING] * 3},
        {"attention_bias": True, "vocab_size": 103, "final_logit_softcapping": None},
        tie_word_embeddings=False,
    ),
]
