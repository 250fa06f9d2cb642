"""Tiny models of deepseek_v2."""

from __future__ import annotations

from typing import Any

from cases import EXPERTS, YARN, Case, case

DEEPSEEK = {
    "num_key_value_heads": 6,
    "q_lora_rank": 18,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
    "moe_intermediate_size": 24,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
}


def deepseek(version: int, name: str, **config: Any) -> Case:
    return case(f"deepseek_v{version}", name, EXPERTS, **(DEEPSEEK | config))


CASES = [
    deepseek(2, "greedy", routed_scaling_factor=1.7, first_k_dense_replace=0, tie_word_embeddings=True),
    deepseek(
        2,
        "groups-no-q-latent-biased-yarn",
        topk_method="group_limited_greedy",
        n_group=3,
        topk_group=2,
        q_lora_rank=None,
        attention_bias=True,
        mlp_bias=True,
        rope_parameters=YARN | {"mscale": 0.7, "mscale_all_dim": 0.5},
    ),
]
