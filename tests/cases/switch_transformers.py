"""Tiny models of switch_transformers. In their encoders, experts have fewer places than tokens want."""

from __future__ import annotations

from typing import Any

from cases import Case
from cases.t5 import SIZES


def switch(name: str, **config: Any) -> Case:
    experts = {"num_experts": 4, "expert_capacity": 7, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
    # untied, it keeps token vectors that nothing reads
    unused = () if config.get("tie_word_embeddings", True) else ("shared.weight",)
    config = SIZES | experts | config
    return Case(f"switch_transformers-{name}", "switch_transformers", config, seq2seq=True, not_exported=unused)


CASES = [
    switch("all-sparse", num_sparse_encoder_layers=3, num_sparse_decoder_layers=2),
    switch("gelu-untied", router_bias=True, tie_word_embeddings=False, dense_act_fn="gelu_new", num_layers=4),
]
