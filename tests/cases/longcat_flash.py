"""Tiny models of longcat_flash."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cases import YARN, Case, case

SIZES = {"hidden_size": 48, "ffn_hidden_size": 64, "expert_ffn_hidden_size": 24, "num_layers": 2, "moe_topk": 3}
SIZES |= {"num_attention_heads": 6, "num_key_value_heads": 6, "q_lora_rank": 18, "kv_lora_rank": 20}
SIZES |= {"qk_nope_head_dim": 10, "qk_rope_head_dim": 6, "head_dim": 6, "v_head_dim": 14, "max_position_embeddings": 64}
SIZES |= {"n_routed_experts": 5, "zero_expert_num": 3, "routed_scaling_factor": 1.7}


def longcat(name: str, **config: Any) -> Case:
    own = SIZES | config
    unused = range(own["n_routed_experts"], own["n_routed_experts"] + own["zero_expert_num"])
    tensors = [
        f"model.layers.{layer}.mlp.experts.{expert}.{name}_proj.weight"
        for layer in range(own["num_layers"])
        for expert in unused
        for name in ("gate", "up")
    ]
    return replace(case("longcat_flash", name, own), not_exported=tuple(tensors))


CASES = [
    longcat("zero-experts"),
    longcat(
        "yarn-biased",
        num_layers=1,
        zero_expert_num=0,
        attention_bias=True,
        tie_word_embeddings=True,
        rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
    ),
]
