"""GGUF architectures whose layers are of several kinds: Mamba or attention, with dense or sparse feed-forwards."""

from __future__ import annotations

from easydel.weights.gguf_architecture import ATTENTION, GATED, NORMS, QK_NORMS, SILU, Architecture, decoder, experts
from easydel.weights.gguf_dense import SSM_CHANGES
from easydel.weights.gguf_mixtures import QWEN_EXPERTS
from easydel.weights.gguf_tensors import by_key_head, convolution, exponential, one_more, row

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
            "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
            "full_attention_interval": "full_attention_interval",
            "ssm.conv_kernel": "linear_conv_kernel_dim",
            "ssm.state_size": "linear_key_head_dim",
            "ssm.group_count": "linear_num_key_heads",
            "ssm.time_step_rank": "linear_num_value_heads",
        },
        constants=SILU,
        exact={
            "blk.{}.ssm_a": "model.layers.{}.linear_attn.A_log",
            "blk.{}.ssm_dt.bias": "model.layers.{}.linear_attn.dt_bias",
        },
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
}
