"""Tiny pairs: bert or its kin reads, and one of them or gpt2 writes."""

from __future__ import annotations

from typing import Any

from cases import Case
from cases.bert import SIZES

READER = SIZES | {"vocab_size": 89}
WRITER = SIZES | {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 72}
WRITER |= {"is_decoder": True, "add_cross_attention": True}
GPT2_WRITER = {"vocab_size": 97, "n_embd": 40, "n_head": 4, "n_layer": 2, "n_positions": 64, "n_inner": 72}
GPT2_WRITER |= {"add_cross_attention": True, "scale_attn_by_inverse_layer_idx": True}
POOLED = ("encoder.pooler.",)


def pair(reader: str, writer: str, *unread: str, sizes: dict[str, Any] = WRITER, **config: Any) -> Case:
    """`sizes` and `config` are the decoder's."""
    towers: dict[str, Any] = {"encoder": READER | {"model_type": reader}}
    towers["decoder"] = sizes | {"model_type": writer} | config
    special = {"decoder_start_token_id": 5, "pad_token_id": 0, "vocab_size": 89}
    return Case(
        f"{reader}2{writer}", "encoder-decoder", towers | special, seq2seq=True, not_exported=(*POOLED, *unread)
    )


CASES = [
    pair("bert", "bert"),
    pair("bert", "roberta", "decoder.lm_head.bias", tie_word_embeddings=False, hidden_act="relu"),
    pair("bert-generation", "bert-generation"),
    pair("roberta", "gpt2", sizes=GPT2_WRITER),  # of two widths, with a projection
    pair("bert", "gpt2", sizes=GPT2_WRITER, n_embd=48, tie_word_embeddings=False),
]
