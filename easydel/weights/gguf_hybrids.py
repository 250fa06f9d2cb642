"""GGUF architectures whose layers are of several kinds: Mamba or attention, with dense or sparse feed-forwards."""

from __future__ import annotations

import math
from dataclasses import replace

from easydel.checkpoint import Tensor
from easydel.weights.gguf_architecture import (
    ATTENTION,
    GATED,
    GLU,
    NORMS,
    QK_NORMS,
    RMS,
    SILU,
    Architecture,
    decoder,
    experts,
)
from easydel.weights.gguf_delta import IN_TURNS
from easydel.weights.gguf_dense import SECTIONS, SSM_CHANGES
from easydel.weights.gguf_mixtures import QWEN_EXPERTS
from easydel.weights.gguf_tensors import (
    Config,
    HFTensor,
    by_key_head,
    convolution,
    exponential,
    latent,
    one_more,
    reshaped,
    row,
)
from easydel.weights.sources import TensorSource

_KEYS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
}
_JAMBA_MAMBA = ("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj", "dt_layernorm", "b_layernorm", "c_layernorm")
_JAMBA = (
    *("input_layernorm", "pre_ff_layernorm", *ATTENTION, "feed_forward.router"),
    *(f"mamba.{name}" for name in _JAMBA_MAMBA),
    *(f"feed_forward.{name}" for name in GATED),
    *experts("feed_forward.experts", *GATED),
)
_NEMOTRON_H = ("in_proj", "conv1d", "norm", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")

_QWEN3_NEXT = (
    *(*NORMS, *ATTENTION, *QK_NORMS, "mlp.gate", "mlp.shared_expert_gate", *experts("mlp.experts", *GATED)),
    *(f"mlp.shared_expert.{name}" for name in GATED),
    *(f"linear_attn.{name}" for name in ("in_proj_ba", "conv1d", "norm", "out_proj")),
)

_SPARSE_NEMOTRON = ("gate", "shared_experts.up_proj", "shared_experts.down_proj", "fc1_latent_proj", "fc2_latent_proj")
_DELTA_KEYS = {
    "full_attention_interval": "full_attention_interval",
    "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.state_size": "linear_key_head_dim",
    "ssm.group_count": "linear_num_key_heads",
    "ssm.time_step_rank": "linear_num_value_heads",
}
_DELTA_EXACT = {
    "blk.{}.ssm_a": "model.layers.{}.linear_attn.A_log",
    "blk.{}.ssm_dt.bias": "model.layers.{}.linear_attn.dt_bias",
}
_QWEN35 = (
    *(*NORMS, *ATTENTION, *QK_NORMS),
    *(f"linear_attn.{name}" for name in ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b")),
    *(f"linear_attn.{name}" for name in ("conv1d", "norm", "out_proj")),
)
_FALCON_H1 = (
    *("input_layernorm", *ATTENTION, *(f"feed_forward.{name}" for name in GATED)),
    *(f"mamba.{name}" for name in ("in_proj", "conv1d", "norm", "out_proj")),
)
# llama.cpp has these in the weights
_MULTIPLIERS = ("embedding", "lm_head", "key", "attention_in", "attention_out", "ssm_in", "ssm_out")
_KIMI = (
    *(*NORMS, *ATTENTION, *GLU, "block_sparse_moe.gate", *experts("block_sparse_moe.experts", "w1", "w2", "w3")),
    *(f"block_sparse_moe.shared_experts.{name}" for name in GATED),
    *(f"self_attn.{name}" for name in ("q_a_proj", "q_a_layernorm", "q_b_proj")),
    *(f"self_attn.{name}" for name in ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj")),
    *(f"self_attn.{name}_conv1d" for name in "qkv"),
    *(f"self_attn.{name}" for name in ("f_a_proj", "f_b_proj", "b_proj", "g_a_proj", "g_b_proj", "o_norm")),
)


def _batched(tensor: Tensor, config: Config) -> TensorSource:
    """Undoes that Kimi's decay may have lost dimensions of 1."""
    return HFTensor(reshaped(tensor, (1, 1, math.prod(tensor.shape), 1)), log=True)


def _channels_first(tensor: Tensor, config: Config) -> TensorSource:
    """Undoes that a convolution by channels has its dimensions of 1 elsewhere."""
    return reshaped(tensor, (math.prod(tensor.shape[:-1]), 1, tensor.shape[-1])) if tensor.shape else tensor


HYBRIDS: dict[str, Architecture] = {
    "jamba": Architecture(
        "jamba",
        (
            *("model.embed_tokens", "model.final_layernorm", "lm_head"),
            *(f"model.layers.{{}}.{name}" for name in _JAMBA),
        ),
        {
            **_KEYS,
            "feed_forward_length": "intermediate_size",
            "attention.layer_norm_rms_epsilon": "rms_norm_eps",
            "expert_count": "num_experts",
            "expert_used_count": "num_experts_per_tok",
            "ssm.conv_kernel": "mamba_d_conv",
            "ssm.state_size": "mamba_d_state",
            "ssm.time_step_rank": "mamba_dt_rank",
        },
        constants=SILU,
        exact={"blk.{}.ssm_a": "model.layers.{}.mamba.A_log", "blk.{}.ssm_d": "model.layers.{}.mamba.D"},
        changes={r"ssm_a": exponential, r"ssm_conv1d\.weight": convolution},
        rotary=None,
    ),
    "nemotron_h": Architecture(
        "nemotron_h",
        (
            *("backbone.embeddings", "backbone.norm_f", "lm_head", "backbone.layers.{}.norm"),
            *(f"backbone.layers.{{}}.mixer.{name}" for name in _NEMOTRON_H),
        ),
        {
            **_KEYS,
            "attention.key_length": "head_dim",
            "ssm.conv_kernel": "conv_kernel",
            "ssm.state_size": "ssm_state_size",
            "ssm.group_count": "n_groups",
            "ssm.time_step_rank": "mamba_num_heads",
        },
        exact={
            "blk.{}.ssm_a": "backbone.layers.{}.mixer.A_log",
            "blk.{}.ssm_d": "backbone.layers.{}.mixer.D",
            "blk.{}.ssm_dt.bias": "backbone.layers.{}.mixer.dt_bias",
        },
        changes=SSM_CHANGES,
        rotary=None,
    ),
    "qwen3next": Architecture(
        "qwen3_next",
        decoder(*_QWEN3_NEXT),
        {
            **QWEN_EXPERTS,
            **_DELTA_KEYS,
            "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
        },
        constants=SILU,
        exact=_DELTA_EXACT,
        changes={
            r"ssm_a": exponential,
            r"ssm_conv1d\.weight": convolution,
            r"ffn_gate_inp_shexp\.weight": row,
            r"(?!ssm).*norm\.weight": one_more,
        },
        joined={
            "model.layers.{}.linear_attn.in_proj_qkvz.weight": ("attn_qkv.weight", "attn_gate.weight", by_key_head)
        },
        rotary="part",
    ),
    "qwen35": Architecture(
        "qwen3_5_text",
        decoder(*_QWEN35, *GLU),
        {**RMS, **_DELTA_KEYS},
        constants=SILU,
        exact=_DELTA_EXACT,
        changes={**IN_TURNS, r"(?!ssm).*norm\.weight": one_more},
        ignored=SECTIONS,
        rotary="part",
    ),
    "qwen35moe": Architecture(
        "qwen3_5_moe_text",
        decoder(
            *(*_QWEN35, "mlp.gate", "mlp.shared_expert_gate", *experts("mlp.experts", *GATED)),
            *(f"mlp.shared_expert.{name}" for name in GATED),
        ),
        {
            **{key: theirs for key, theirs in QWEN_EXPERTS.items() if theirs != "norm_topk_prob"},
            **_DELTA_KEYS,
            "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
        },
        constants=SILU,
        exact=_DELTA_EXACT,
        changes={**IN_TURNS, r"(?!ssm).*norm\.weight": one_more, r"ffn_gate_inp_shexp\.weight": row},
        ignored=SECTIONS,
        rotary="part",
    ),
    "falcon-h1": Architecture(
        "falcon_h1",
        ("model.embed_tokens", "model.final_layernorm", "lm_head", *decoder(*_FALCON_H1)[3:]),
        {
            **RMS,
            "ssm.conv_kernel": "mamba_d_conv",
            "ssm.state_size": "mamba_d_state",
            "ssm.group_count": "mamba_n_groups",
            "ssm.inner_size": "mamba_d_ssm",
            "ssm.time_step_rank": "mamba_n_heads",
        },
        constants={
            **SILU,
            **{f"{name}_multiplier": 1.0 for name in _MULTIPLIERS},
            "mlp_multipliers": [1.0] * 2,
            "ssm_multipliers": [1.0] * 5,
            "mamba_norm_before_gate": False,
        },
        exact={
            "blk.{}.ssm_a": "model.layers.{}.mamba.A_log",
            "blk.{}.ssm_d": "model.layers.{}.mamba.D",
            "blk.{}.ssm_dt.bias": "model.layers.{}.mamba.dt_bias",
            "blk.{}.ffn_norm.weight": "model.layers.{}.pre_ff_layernorm.weight",
        },
        changes=SSM_CHANGES,
    ),
    "kimi-linear": Architecture(
        "kimi_linear",
        decoder(*_KIMI),
        {
            **_KEYS,
            "feed_forward_length": "intermediate_size",
            "attention.layer_norm_rms_epsilon": "rms_norm_eps",
            "attention.q_lora_rank": "q_lora_rank",
            "attention.kv_lora_rank": "kv_lora_rank",
            "rope.dimension_count": "qk_rope_head_dim",
            "expert_count": "num_experts",
            "expert_used_count": "num_experts_per_tok",
            "expert_shared_count": "num_shared_experts",
            "expert_feed_forward_length": "moe_intermediate_size",
            "expert_weights_scale": "routed_scaling_factor",
            "expert_group_count": "num_expert_group",
            "expert_group_used_count": "topk_group",
            "kda.head_dim": "linear_head_dim",
            "ssm.conv_kernel": "linear_conv_kernel_dim",
        },
        constants={**SILU, "moe_renormalize": True},
        exact={
            "blk.{}.ssm_a": "model.layers.{}.self_attn.A_log",
            "blk.{}.ssm_dt.bias": "model.layers.{}.self_attn.dt_bias",
            "blk.{}.exp_probs_b.bias": "model.layers.{}.block_sparse_moe.gate.e_score_correction_bias",
        },
        changes={r"ssm_a": _batched, r"ssm_conv1d_[qkv]\.weight": _channels_first},
        joined={"model.layers.{}.self_attn.kv_b_proj.weight": ("attn_k_b.weight", "attn_v_b.weight", latent)},
        rotary=None,
    ),
}
HYBRIDS["nemotron_h_moe"] = replace(
    HYBRIDS["nemotron_h"],
    modules=(*HYBRIDS["nemotron_h"].modules, *(f"backbone.layers.{{}}.mixer.{name}" for name in _SPARSE_NEMOTRON)),
    keys={
        **HYBRIDS["nemotron_h"].keys,
        "expert_count": "n_routed_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_shared_feed_forward_length": "moe_shared_expert_intermediate_size",
        "expert_weights_norm": "norm_topk_prob",
        "expert_weights_scale": "routed_scaling_factor",
        "expert_group_count": "n_group",
        "expert_group_used_count": "topk_group",
        "moe_latent_size": "moe_latent_size",
    },
    exact={
        **HYBRIDS["nemotron_h"].exact,
        "blk.{}.exp_probs_b.bias": "backbone.layers.{}.mixer.gate.e_score_correction_bias",
        "blk.{}.ffn_up_exps.weight": "backbone.layers.{}.mixer.experts.{{}}.up_proj.weight",
        "blk.{}.ffn_down_exps.weight": "backbone.layers.{}.mixer.experts.{{}}.down_proj.weight",
    },
    ignored=("expert_shared_count",),
)
