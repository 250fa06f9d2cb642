"""Tiny models of GGUF architectures: the original checkpoint's config, and what the converter writes beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cases import EXPERTS, FULL, SIZES, SLIDING, Case
from gguf_convert import KEYS

MOE = EXPERTS | {"moe_intermediate_size": 24}
DEEPSEEK = MOE | {
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.5,
    "first_k_dense_replace": 1,
}
LATENT = DEEPSEEK | {
    "kv_lora_rank": 20,
    "q_lora_rank": 18,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
    "num_key_value_heads": 6,
    "head_dim": 6,
}
MLA = {
    "rope.dimension_count": 6,
    "attention.head_count_kv": 1,
    "attention.key_length": 26,
    "attention.value_length": 20,
    "attention.key_length_mla": 16,
    "attention.value_length_mla": 14,
}
MULTIPLIED = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 0.75,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.25,
}
PLAIN = {"hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 3, "max_position_embeddings": 64}
RECURRENT = {"hidden_size": 48, "num_hidden_layers": 3, "state_size": 5}
MAMBA = {
    "ssm.inner_size": 96,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.layer_norm_epsilon": None,
    "attention.head_count": 0,
    "feed_forward_length": 0,
    "context_length": 1 << 20,
}
SSM = {
    "ssm.inner_size": 96,
    "ssm.time_step_rank": 6,
    "attention.head_count_kv": [0, 2, 0],
    "rope.scaling.finetuned": False,
    "expert_weights_norm": None,
}
HYBRID = SIZES | MULTIPLIED
HYBRID |= {"layer_types": ["linear_attention", FULL, "linear_attention"], "shared_intermediate_size": 56}
HYBRID |= {"mamba_n_heads": 6, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 5, "mamba_expand": 2}
NOPE = {"position_embedding_type": "nope"}
CONV = {"layer_types": ["conv", FULL, "conv"]}
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 32.0, "rope.scaling.original_context_length": 4096}
STRETCHED = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
UNSCALED = {"rope.scaling.type": "none", "rope.scaling.factor": 1.0}
NORM_EPSILON = {"attention.layer_norm_epsilon": 1e-5}
SIGMOID = {"expert_gating_func": 2}


@dataclass(frozen=True)
class Row:
    """A model to convert to `arch`; `metadata` is what is not in its config, None for what the converter leaves out."""

    arch: str
    case: Case
    metadata: Mapping[str, Any]


def row(
    arch: str, model_type: str, metadata: Mapping[str, Any], sizes: Any = SIZES, *, seq2seq: bool = False, **config: Any
) -> Row:
    special = {"vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    values = {**special, **sizes, **config}
    return Row(arch, Case(f"{arch}-{model_type}", model_type, values, seq2seq=seq2seq), metadata)


ROWS = [
    row(
        "mistral3",
        "ministral3",
        YARN | {"rope.scaling.yarn_log_multiplier": 1.0, "attention.temperature_scale": 0.25},
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 500.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.25,
        },
        head_dim=10,
        sliding_window=None,
    ),
    row("phi2", "phi", {}, partial_rotary_factor=0.5),
    row("olmo", "olmo", NORM_EPSILON, clip_qkv=0.75),
    row("olmo2", "olmo2", {}),
    row("olmo2", "olmo3", {}, sliding_window=5, num_hidden_layers=4),
    row("granite", "granite", {}, **MULTIPLIED),
    row("command-r", "cohere", {}, logit_scale=0.25, tie_word_embeddings=True),
    row("cohere2", "cohere2", UNSCALED, logit_scale=0.25, sliding_window=5, head_dim=8, num_hidden_layers=4),
    row("nemotron", "nemotron", NORM_EPSILON, partial_rotary_factor=0.5, attention_bias=True),
    row(
        "exaone4",
        "exaone4",
        {"attention.sliding_window_pattern": [True, True, False]},
        sliding_window=5,
        layer_types=[SLIDING, SLIDING, FULL],
    ),
    row("smollm3", "smollm3", {}, num_hidden_layers=4),
    row("ernie4_5", "ernie4_5", {}, head_dim=10),
    row("hunyuan-dense", "hunyuan_v1_dense", UNSCALED, head_dim=10),
    row("glm4", "glm4", {}, head_dim=12, partial_rotary_factor=0.5, attention_bias=True),
    row("seed_oss", "seed_oss", {}, attention_bias=True, attention_out_bias=False, head_dim=10),
    row("arcee", "arcee", {}, head_dim=10),
    row("gptneox", "gpt_neox", {}, PLAIN, intermediate_size=80, rotary_pct=0.5),
    row("falcon", "falcon", {"attention.head_count_kv": 1}, PLAIN),
    row("falcon", "falcon", {}, PLAIN, new_decoder_architecture=True, num_kv_heads=2),
    row("bloom", "bloom", {"context_length": 64}, {"hidden_size": 48, "n_head": 6, "n_layer": 2}),
    row(
        "mpt",
        "mpt",
        NORM_EPSILON | {"attention.clamp_kqv": 0.75, "attention.max_alibi_bias": 16.0},
        {"d_model": 48, "n_heads": 6, "n_layers": 2, "max_seq_len": 64},
        attn_config={"clip_qkv": 0.75, "alibi_bias_max": 16},
    ),
    row("starcoder", "gpt_bigcode", {}, {"n_embd": 48, "n_head": 6, "n_layer": 2, "n_positions": 64, "n_inner": 80}),
    row("mamba", "mamba", MAMBA | {"ssm.time_step_rank": 7, "ssm.dt_b_c_rms": False}, RECURRENT, time_step_rank=7),
    row(
        "mamba", "falcon_mamba", MAMBA | {"ssm.time_step_rank": 7, "ssm.dt_b_c_rms": True}, RECURRENT, time_step_rank=7
    ),
    row(
        "mamba2",
        "mamba2",
        MAMBA | {"ssm.time_step_rank": 6, "attention.key_length": None},
        RECURRENT,
        num_heads=6,
        head_dim=16,
        n_groups=2,
        tie_word_embeddings=True,
    ),
    row("lfm2", "lfm2", {"attention.head_count_kv": [0, 2, 0]}, block_auto_adjust_ff_dim=False, **CONV),
    row(
        "gemma3n",
        "gemma3n_text",
        {
            "attention.sliding_window_pattern": [True, False, True, False],
            "activation_sparsity_scale": [1.6448536, float("-inf"), float("-inf"), float("-inf")],
        },
        num_hidden_layers=4,
        layer_types=[SLIDING, FULL, SLIDING, FULL],
        num_kv_shared_layers=2,
        activation_sparsity_pattern=[0.95, 0.0, 0.0, 0.0],
        head_dim=10,
        sliding_window=5,
        vocab_size_per_layer_input=83,
        hidden_size_per_layer_input=14,
        laurel_rank=7,
        tie_word_embeddings=True,
    ),
    row("llama", "mixtral", {}, EXPERTS, num_local_experts=5),
    row("qwen2moe", "qwen2_moe", {}, MOE, num_experts=5, shared_expert_intermediate_size=36),
    row("qwen3moe", "qwen3_moe", {"expert_weights_norm": None}, MOE, num_experts=5, norm_topk_prob=True, head_dim=10),
    row("olmoe", "olmoe", {}, EXPERTS, num_experts=6),
    row("granitemoe", "granitemoe", {}, EXPERTS, num_local_experts=5, **MULTIPLIED),
    row("granitemoe", "granitemoeshared", {}, EXPERTS, num_local_experts=5, shared_intermediate_size=28, **MULTIPLIED),
    row(
        "granitehybrid", "granitemoehybrid", SSM, HYBRID | EXPERTS, num_local_experts=5, position_embedding_type="nope"
    ),
    row(
        "granitehybrid",
        "granitemoehybrid",
        SSM | {"rope.scaling.finetuned": True},
        HYBRID,
        num_local_experts=0,
        position_embedding_type="rope",
        attention_bias=True,
        mamba_conv_bias=False,
    ),
    row(
        "jamba",
        "jamba",
        {"ssm.inner_size": 96, "ssm.time_step_rank": 7, "attention.head_count_kv": [0, 2, 0, 0, 2]},
        EXPERTS,
        num_hidden_layers=5,
        num_experts=5,
        attn_layer_period=3,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=5,
        mamba_dt_rank=7,
    ),
    row(
        "nemotron_h",
        "nemotron_h",
        {
            "ssm.inner_size": 60,
            "ssm.time_step_rank": 6,
            "attention.head_count_kv": [0, 0, 2, 0],
            "feed_forward_length": [0, 80, 0, 0],
            "attention.layer_norm_rms_epsilon": 1e-5,
            **dict.fromkeys([key for key in KEYS if "expert" in key]),
        },
        layers_block_type=["linear_attention", "mlp", FULL, "linear_attention"],
        head_dim=10,
        mamba_num_heads=6,
        mamba_head_dim=10,
        n_groups=2,
        ssm_state_size=5,
    ),
    row(
        "qwen3next",
        "qwen3_next",
        {"ssm.inner_size": 40, "ssm.time_step_rank": 4, "full_attention_interval": 2},
        MOE,
        num_experts=5,
        shared_expert_intermediate_size=36,
        full_attention_interval=2,
        head_dim=12,
        partial_rotary_factor=0.5,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=6,
        linear_value_head_dim=10,
    ),
    row("ernie4_5-moe", "ernie4_5_moe", {}, MOE, moe_num_experts=5, moe_k=2, moe_num_shared_experts=2),
    row(
        "hunyuan-moe",
        "hunyuan_v1_moe",
        {"expert_feed_forward_length": 40, "expert_shared_feed_forward_length": 40, "expert_shared_count": 1},
        EXPERTS,
        num_experts=5,
        moe_topk=2,
        head_dim=10,
    ),
    row("deepseek2", "deepseek_v2", MLA | {"expert_gating_func": 1}, LATENT),
    row(
        "deepseek2",
        "deepseek_v3",
        MLA | YARN | {"rope.scaling.yarn_log_multiplier": 0.1},
        LATENT,
        rope_parameters=STRETCHED,
        n_group=3,
        topk_group=2,
        norm_topk_prob=True,
    ),
    row(
        "dots1",
        "dots1",
        {"attention.sliding_window": None},
        DEEPSEEK,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        head_dim=10,
    ),
    row(
        "glm4moe",
        "glm4_moe",
        SIGMOID,
        DEEPSEEK,
        head_dim=12,
        partial_rotary_factor=0.5,
        use_qk_norm=True,
        attention_bias=True,
    ),
    row(
        "minimax-m2",
        "minimax_m2",
        SIGMOID | {"expert_feed_forward_length": 40},
        EXPERTS,
        num_local_experts=5,
        rotary_dim=6,
        partial_rotary_factor=0.6,
        head_dim=10,
    ),
    row(
        "gpt-oss",
        "gpt_oss",
        YARN | {"expert_feed_forward_length": 40},
        EXPERTS,
        num_local_experts=5,
        sliding_window=5,
        num_hidden_layers=2,
        head_dim=10,
    ),
    row(
        "lfm2moe",
        "lfm2_moe",
        SIGMOID | {"attention.head_count_kv": [0, 2, 0]},
        MOE,
        num_experts=5,
        num_dense_layers=1,
        **CONV,
    ),
    row(
        "exaone-moe",
        "exaone_moe",
        SIGMOID | {"attention.sliding_window_pattern": [True, True, True, False]},
        MOE,
        num_hidden_layers=4,
        sliding_window=5,
        num_experts=6,
        num_shared_experts=1,
        first_k_dense_replace=1,
    ),
]
