"""Tiny models of xmod: where the adapter's norm is, and what the adapter is added to."""

from __future__ import annotations

from typing import Any

from cases import Case
from cases.bert import both_ways, causal, untied

SPOKEN = {"languages": ["en_XX", "de_DE"], "default_language": "de_DE", "adapter_reduction_factor": 3}


def spoken(name: str, make: Any = causal, **config: Any) -> Case:
    return make("xmod", name, **SPOKEN, **config)


CASES = [
    spoken("causal", hidden_act="relu"),
    spoken("pre-norm", pre_norm=True),
    spoken("own-norm", adapter_layer_norm=True, ln_before_adapter=False),
    untied(spoken("both-ways-unnormed", both_ways, adapter_reuse_layer_norm=False, pad_token_id=2), "lm_head.bias"),
]
