"""Tiny models of gpt_oss."""

from __future__ import annotations

from cases import EXPERTS, YARN, case

CASES = [
    case(
        "gpt_oss",
        "yarn",
        EXPERTS,
        num_hidden_layers=4,
        num_local_experts=5,
        num_experts_per_tok=3,
        intermediate_size=20,
        head_dim=10,
        sliding_window=5,
        swiglu_alpha=1.3,
        swiglu_limit=0.6,
        rope_parameters=YARN | {"truncate": False},
    ),
]
