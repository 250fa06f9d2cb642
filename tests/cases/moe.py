"""Mixtures of experts with every way of routing."""

from __future__ import annotations

from typing import Any

from cases import Case

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FULL, SLIDING = "full_attention", "sliding_attention"


def case(model_type: str, name: str, *, tp: int = 2, growing_rope: bool = False, **config: Any) -> Case:
    return Case(f"{model_type}-{name}", model_type, SIZES | config, tp=tp, growing_rope=growing_rope)


MIXTRAL = [
    case("mixtral", "plain", num_local_experts=5),
    case(
        "mixtral",
        "window-tied-wide-heads",
        num_local_experts=4,
        num_experts_per_tok=3,
        sliding_window=5,
        tie_word_embeddings=True,
        head_dim=10,
    ),
]
QWEN2_EXPERTS = {"num_experts": 5, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 36}
QWEN2_MOE = [
    case("qwen2_moe", "plain", **QWEN2_EXPERTS),
    case(
        "qwen2_moe",
        "renormalized-some-dense-layers-sliding",
        **QWEN2_EXPERTS,
        num_hidden_layers=6,
        norm_topk_prob=True,
        decoder_sparse_step=2,
        mlp_only_layers=[3],
        qkv_bias=False,
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=4,
        tie_word_embeddings=True,
    ),
    case(
        "qwen2_moe",
        "layer-types",
        **QWEN2_EXPERTS,
        use_sliding_window=True,
        sliding_window=5,
        layer_types=[FULL, SLIDING, SLIDING],
    ),
]
QWEN3_MOE = [
    case("qwen3_moe", "plain", num_experts=6, moe_intermediate_size=24, head_dim=10),
    case(
        "qwen3_moe",
        "renormalized-biased-sliding-dense-first",
        num_experts=5,
        num_experts_per_tok=3,
        moe_intermediate_size=24,
        norm_topk_prob=True,
        attention_bias=True,
        mlp_only_layers=[0],
        use_sliding_window=True,
        sliding_window=5,
        tie_word_embeddings=True,
    ),
]
OLMOE = [
    case("olmoe", "plain", num_experts=6),
    case(
        "olmoe",
        "clipped-biased-renormalized",
        num_experts=5,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        clip_qkv=0.8,
        attention_bias=True,
        tie_word_embeddings=True,
    ),
]
DEEPSEEK = {
    "num_hidden_layers": 3,
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
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 4.0,
    "beta_slow": 0.5,
}


def deepseek(version: int, name: str, **config: Any) -> Case:
    return case(f"deepseek_v{version}", name, **(DEEPSEEK | config))


DEEPSEEK_V2 = [
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
DEEPSEEK_V3 = [
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

GPT_OSS = [
    case(
        "gpt_oss",
        "yarn",
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

CASES = MIXTRAL + QWEN2_MOE + QWEN3_MOE + OLMOE + DEEPSEEK_V2 + DEEPSEEK_V3 + GPT_OSS
