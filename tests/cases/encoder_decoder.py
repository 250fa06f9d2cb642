"""Tiny pairs of bert and its kin."""

from __future__ import annotations

from typing import Any

from cases import Case
from cases.bert import SIZES

READER = SIZES | {"vocab_size": 89}
WRITER = SIZES | {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 72}
WRITER |= {"is_decoder": True, "add_cross_attention": True}
POOLED = ("encoder.pooler.",)


def pair(reader: str, writer: str, *unread: str, **config: Any) -> Case:
    """`config` is the decoder's, besides sizes."""
    towers: dict[str, Any] = {"encoder": READER | {"model_type": reader}}
    towers["decoder"] = WRITER | {"model_type": writer} | config
    special = {"decoder_start_token_id": 5, "pad_token_id": 0, "vocab_size": 89}
    return Case(
        f"{reader}2{writer}", "encoder-decoder", towers | special, seq2seq=True, not_exported=(*POOLED, *unread)
    )


CASES = [
    pair("bert", "bert"),
    pair("bert", "roberta", "decoder.lm_head.bias", tie_word_embeddings=False, hidden_act="relu"),
    pair("bert-generation", "bert-generation"),
]
