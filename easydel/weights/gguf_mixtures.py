"""GGUF architectures with experts."""

from __future__ import annotations

from dataclasses import replace

from easydel.weights.gguf_architecture import (
    ATTENTION,
    GATED,
    GLU,
    NORMS,
    QK_NORMS,
    RMS,
    ROTARY,
    SILU,
    WINDOW,
    Architecture,
    decoder,
    experts,
)
from easydel.weights.gguf_dense import CONV, CONV_CHANGES, CONV_MODULES, GRANITE, SECTIONS, SSM_CHANGES
from easydel.weights.gguf_tensors import after, all_rows, all_rows_turned, beside, latent, row, transposed, woven

_EXPERTS = experts("mlp.experts", *GATED)
_SPARSE = experts("block_sparse_moe.experts", "w1", "w2", "w3")
_LOCAL = {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}
QWEN_EXPERTS = {
    **RMS,
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_weights_norm": "norm_topk_prob",
}
_DEEPSEEK = {
    **RMS,
    "expert_count": "n_routed_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_shared_count": "n_shared_experts",
    "expert_feed_forward_length": "moe_intermediate_size",
    "leading_dense_block_count": "first_k_dense_replace",
    "expert_weights_scale": "routed_scaling_factor",
    "expert_weights_norm": "norm_topk_prob",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
}
_LATENT = {
    **{key: theirs for key, theirs in _DEEPSEEK.items() if "head_count_kv" not in key and "key_length" not in key},
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "rope.dimension_count": "qk_rope_head_dim",
}
_LATENT_PROJECTIONS = (
    *("q_proj", "q_a_proj", "q_a_layernorm", "q_b_proj", "o_proj"),
    *("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj"),
)
_LATENT_MODULES = decoder(
    *(*NORMS, *GLU, "mlp.gate", *_EXPERTS, *(f"mlp.shared_experts.{name}" for name in GATED)),
    *(f"self_attn.{name}" for name in _LATENT_PROJECTIONS),
)
_INDEXER = ("k_norm", "weights_proj", "wk", "wq_b")
_LATENT_KV = {"model.layers.{}.self_attn.kv_b_proj.weight": ("attn_k_b.weight", "attn_v_b.weight", latent)}
_SHARED = (*NORMS, *ATTENTION, *QK_NORMS, *GLU, "mlp.gate", *_EXPERTS, *(f"mlp.shared_experts.{n}" for n in GATED))
_CORRECTED = {"blk.{}.exp_probs_b.bias": "model.layers.{}.mlp.gate.e_score_correction_bias"}
_GATE_UP = ("ffn_gate_exps.weight", "ffn_up_exps.weight", after)
_GRANITE_MODULES = decoder(*NORMS, *ATTENTION, "block_sparse_moe.output_linear", "block_sparse_moe.router.layer")
_SHARED_GATE_UP = ("ffn_gate_shexp.weight", "ffn_up_shexp.weight", after)
_GRANITE_SSM = {
    **{key: theirs for key, theirs in GRANITE.items() if "head_count_kv" not in key and "key_length" not in key},
    "expert_shared_feed_forward_length": "shared_intermediate_size",
    "ssm.conv_kernel": "mamba_d_conv",
    "ssm.state_size": "mamba_d_state",
    "ssm.group_count": "mamba_n_groups",
    "ssm.time_step_rank": "mamba_n_heads",
}
_SSM_MODULES = tuple(f"model.layers.{{}}.mamba.{name}" for name in ("in_proj", "conv1d", "norm", "out_proj"))
_SSM_EXACT = {
    "blk.{}.ssm_a": "model.layers.{}.mamba.A_log",
    "blk.{}.ssm_d": "model.layers.{}.mamba.D",
    "blk.{}.ssm_dt.bias": "model.layers.{}.mamba.dt_bias",
}

MIXTURES: dict[str, Architecture] = {
    "llama with experts": Architecture(
        "mixtral",
        decoder(*NORMS, *ATTENTION, "block_sparse_moe.gate", *_SPARSE),
        {**RMS, **_LOCAL},
        constants=SILU,
        changes=ROTARY,
    ),
    "qwen2moe": Architecture(
        "qwen2_moe",
        decoder(
            *(*NORMS, *ATTENTION, *GLU, "mlp.gate", *_EXPERTS, "mlp.shared_expert_gate"),
            *(f"mlp.shared_expert.{name}" for name in GATED),
        ),
        {**QWEN_EXPERTS, "expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
        constants=SILU,
        changes={r"ffn_gate_inp_shexp\.weight": row},
    ),
    "qwen3moe": Architecture(
        "qwen3_moe",
        decoder(*NORMS, *ATTENTION, *QK_NORMS, *GLU, "mlp.gate", *_EXPERTS),
        QWEN_EXPERTS,
        constants=SILU,
        switches={"attention_bias": "blk.0.attn_q.bias"},
    ),
    "olmoe": Architecture(
        "olmoe",
        decoder(*NORMS, *ATTENTION, *QK_NORMS, "mlp.gate", *_EXPERTS),
        {**QWEN_EXPERTS, "attention.clamp_kqv": "clip_qkv"},
        constants=SILU,
        switches={"attention_bias": "blk.0.attn_q.bias"},
    ),
    "granitemoe": Architecture(
        "granitemoe",
        _GRANITE_MODULES,
        {**GRANITE, **_LOCAL},
        constants=SILU,
        switches={"attention_bias": "blk.0.attn_q.bias"},
        changes=ROTARY,
        joined={"model.layers.{}.block_sparse_moe.input_linear.weight": _GATE_UP},
    ),
    "granitemoe with shared experts": Architecture(
        "granitemoeshared",
        (*_GRANITE_MODULES, "model.layers.{}.shared_mlp.output_linear"),
        {**GRANITE, **_LOCAL, "expert_shared_feed_forward_length": "shared_intermediate_size"},
        constants=SILU,
        switches={"attention_bias": "blk.0.attn_q.bias"},
        changes=ROTARY,
        joined={
            "model.layers.{}.block_sparse_moe.input_linear.weight": _GATE_UP,
            "model.layers.{}.shared_mlp.input_linear.weight": _SHARED_GATE_UP,
        },
    ),
    "granitehybrid": Architecture(
        "granitemoehybrid",
        (*decoder(*NORMS, *ATTENTION), *_SSM_MODULES),
        _GRANITE_SSM,
        constants={**SILU, "num_local_experts": 0},
        exact={**_SSM_EXACT, "blk.{}.ffn_down.weight": "model.layers.{}.shared_mlp.output_linear.weight"},
        changes={**ROTARY, **SSM_CHANGES},
        joined={"model.layers.{}.shared_mlp.input_linear.weight": ("ffn_gate.weight", "ffn_up.weight", after)},
    ),
    "granitehybrid with experts": Architecture(
        "granitemoehybrid",
        (*_GRANITE_MODULES, "model.layers.{}.shared_mlp.output_linear", *_SSM_MODULES),
        {**_GRANITE_SSM, **_LOCAL},
        constants=SILU,
        exact=_SSM_EXACT,
        changes={**ROTARY, **SSM_CHANGES},
        joined={
            "model.layers.{}.block_sparse_moe.input_linear.weight": _GATE_UP,
            "model.layers.{}.shared_mlp.input_linear.weight": _SHARED_GATE_UP,
        },
    ),
    "ernie4_5-moe": Architecture(
        "ernie4_5_moe",
        decoder(*(name for name in _SHARED if name not in QK_NORMS)),
        {
            **RMS,
            "expert_count": "moe_num_experts",
            "expert_used_count": "moe_k",
            "expert_shared_count": "moe_num_shared_experts",
            "expert_feed_forward_length": "moe_intermediate_size",
            "leading_dense_block_count": "moe_layer_start_index",
            "interleave_moe_layer_step": "moe_layer_interval",
        },
        constants=SILU,
        switches={"use_bias": "blk.0.attn_q.bias"},
        exact={"blk.{}.exp_probs_b.bias": "model.layers.{}.mlp.moe_statics.e_score_correction_bias"},
        changes={r"exp_probs_b\.bias": row},
        ignored=("expert_shared_feed_forward_length",),
    ),
    "hunyuan-moe": Architecture(
        "hunyuan_v1_moe",
        decoder(
            *(*NORMS, *ATTENTION, "self_attn.query_layernorm", "self_attn.key_layernorm", "mlp.gate.wg", *_EXPERTS),
            *(f"mlp.shared_mlp.{name}" for name in GATED),
        ),
        {**RMS, "expert_count": "num_experts", "expert_used_count": "moe_topk"},
        constants=SILU,
        switches={"attention_bias": "blk.0.attn_q.bias"},
        ignored=("expert_feed_forward_length", "expert_shared_feed_forward_length", "expert_shared_count"),
    ),
    "deepseek2": Architecture(
        "deepseek_v2",
        _LATENT_MODULES,
        _LATENT,
        constants=SILU,
        joined=_LATENT_KV,
        rotary="latent",
        mscale=0.1,
    ),
    "deepseek2 with sigmoids": Architecture(
        "deepseek_v3",
        _LATENT_MODULES,
        _LATENT,
        constants=SILU,
        exact=_CORRECTED,
        joined=_LATENT_KV,
        rotary="latent",
        mscale=0.1,
    ),
    "glm-dsa": Architecture(
        "glm_moe_dsa",
        (*_LATENT_MODULES, *(f"model.layers.{{}}.self_attn.indexer.{name}" for name in _INDEXER)),
        {
            **_LATENT,
            "attention.indexer.head_count": "index_n_heads",
            "attention.indexer.key_length": "index_head_dim",
            "attention.indexer.top_k": "index_topk",
        },
        constants=SILU,
        exact=_CORRECTED,
        joined=_LATENT_KV,
        rotary="latent",
        mscale=0.1,
    ),
    "dbrx": Architecture(
        "dbrx",
        (
            *("transformer.wte", "transformer.norm_f", "lm_head", "transformer.blocks.{}.ffn.router.layer"),
            *(f"transformer.blocks.{{}}.norm_attn_norm.{name}" for name in ("norm_1", "norm_2", "attn.Wqkv")),
            "transformer.blocks.{}.norm_attn_norm.attn.out_proj",
        ),
        {
            "context_length": "max_position_embeddings",
            "block_count": "num_hidden_layers",
            "embedding_length": "hidden_size",
            "attention.head_count": "num_attention_heads",
        },
        exact={
            "blk.{}.ffn_gate_exps.weight": "transformer.blocks.{}.ffn.experts.mlp.w1",
            "blk.{}.ffn_up_exps.weight": "transformer.blocks.{}.ffn.experts.mlp.v1",
            "blk.{}.ffn_down_exps.weight": "transformer.blocks.{}.ffn.experts.mlp.w2",
        },
        changes={r"ffn_(gate|up)_exps\.weight": all_rows, r"ffn_down_exps\.weight": all_rows_turned},
        ignored=("attention.layer_norm_epsilon",),
    ),
    "dots1": Architecture(
        "dots1",
        decoder(*_SHARED),
        _DEEPSEEK,
        constants=SILU,
        switches={"attention_bias": "blk.0.attn_q.bias"},
        exact=_CORRECTED,
    ),
    "glm4moe": Architecture(
        "glm4_moe",
        decoder(*_SHARED),
        _DEEPSEEK,
        constants=SILU,
        switches={"attention_bias": "blk.0.attn_q.bias", "use_qk_norm": "blk.0.attn_q_norm.weight"},
        exact=_CORRECTED,
        rotary="part",
    ),
    "exaone-moe": Architecture(
        "exaone_moe",
        decoder(*_SHARED),
        {
            **{key: theirs for key, theirs in _DEEPSEEK.items() if not theirs.startswith("n_") or "group" in theirs},
            **WINDOW,
            "expert_count": "num_experts",
            "expert_shared_count": "num_shared_experts",
        },
        constants=SILU,
        exact={"blk.{}.exp_probs_b.bias": "model.layers.{}.mlp.e_score_correction_bias"},
        ignored=("expert_shared_feed_forward_length",),
    ),
    "minimax-m2": Architecture(
        "minimax_m2",
        decoder(*NORMS, *ATTENTION, *QK_NORMS, "block_sparse_moe.gate", *_SPARSE),
        {**RMS, **_LOCAL},
        constants=SILU,
        exact={"blk.{}.exp_probs_b.bias": "model.layers.{}.block_sparse_moe.e_score_correction_bias"},
        ignored=("expert_feed_forward_length",),
        rotary="part",
    ),
    "gpt-oss": Architecture(
        "gpt_oss",
        decoder(*NORMS, *ATTENTION, "mlp.router"),
        {**RMS, **WINDOW, **_LOCAL},
        constants=SILU,
        exact={
            "blk.{}.attn_sinks.weight": "model.layers.{}.self_attn.sinks",
            "blk.{}.ffn_down_exps.weight": "model.layers.{}.mlp.experts.down_proj",
            "blk.{}.ffn_down_exps.bias": "model.layers.{}.mlp.experts.down_proj_bias",
        },
        changes={r"ffn_down_exps\.weight": transposed},
        joined={
            "model.layers.{}.mlp.experts.gate_up_proj": ("ffn_gate_exps.weight", "ffn_up_exps.weight", woven),
            "model.layers.{}.mlp.experts.gate_up_proj_bias": ("ffn_gate_exps.bias", "ffn_up_exps.bias", woven),
        },
        ignored=("expert_feed_forward_length",),
    ),
    "lfm2moe": Architecture(
        "lfm2_moe",
        (
            *CONV_MODULES,
            "model.layers.{}.feed_forward.gate",
            *(f"model.layers.{{}}.{name}" for name in experts("feed_forward.experts", "w1", "w2", "w3")),
        ),
        {
            **CONV,
            "expert_count": "num_experts",
            "expert_used_count": "num_experts_per_tok",
            "expert_feed_forward_length": "moe_intermediate_size",
            "leading_dense_block_count": "num_dense_layers",
            "expert_weights_scale": "routed_scaling_factor",
            "expert_weights_norm": "norm_topk_prob",
        },
        exact={"blk.{}.exp_probs_b.bias": "model.layers.{}.feed_forward.expert_bias"},
        changes=CONV_CHANGES,
    ),
    "llama4": Architecture(
        "llama4_text",
        decoder(
            *(*NORMS, *ATTENTION, "feed_forward.router", *(f"feed_forward.{name}" for name in GATED)),
            *(f"feed_forward.shared_expert.{name}" for name in GATED),
        ),
        {
            **RMS,
            **_LOCAL,
            "feed_forward_length": "intermediate_size_mlp",
            "expert_feed_forward_length": "intermediate_size",
            "interleave_moe_layer_step": "interleave_moe_layer_step",
        },
        constants={**SILU, "attn_temperature_tuning": True},
        switches={"attention_bias": "blk.0.attn_q.bias"},
        exact={"blk.{}.ffn_down_exps.weight": "model.layers.{}.feed_forward.experts.down_proj"},
        changes={r"ffn_down_exps\.weight": transposed},
        joined={
            "model.layers.{}.feed_forward.experts.gate_up_proj": ("ffn_gate_exps.weight", "ffn_up_exps.weight", beside)
        },
        ignored=("leading_dense_block_count",),
    ),
    "afmoe": Architecture(
        "afmoe",
        decoder(
            *("input_layernorm", "post_attention_layernorm", "pre_mlp_layernorm", "post_mlp_layernorm", *ATTENTION),
            *(*QK_NORMS, "self_attn.gate_proj", *GLU, "mlp.router.gate", *_EXPERTS),
            *(f"mlp.shared_experts.{name}" for name in GATED),
        ),
        {
            **QWEN_EXPERTS,
            **WINDOW,
            "expert_shared_count": "num_shared_experts",
            "leading_dense_block_count": "num_dense_layers",
            "expert_weights_norm": "route_norm",
            "expert_weights_scale": "route_scale",
        },
        constants={**SILU, "mup_enabled": True},
        switches={"attention_bias": "blk.0.attn_q.bias"},
        exact={"blk.{}.exp_probs_b.bias": "model.layers.{}.mlp.expert_bias"},
        ignored=("expert_group_count", "expert_group_used_count"),
    ),
    "mimo2": Architecture(
        "mimo_v2_flash",
        decoder(*NORMS, *ATTENTION, *GLU, "mlp.gate", *_EXPERTS),
        {
            **{key: theirs for key, theirs in _DEEPSEEK.items() if "head_count_kv" not in key and "dense" not in key},
            **WINDOW,
            "attention.value_scale": "attention_value_scale",
        },
        constants=SILU,
        exact=_CORRECTED | {"blk.{}.attn_sinks.weight": "model.layers.{}.self_attn.attention_sink_bias"},
        rotary=None,
    ),
    "minicpm3": Architecture(
        "minicpm3",
        decoder(*NORMS, *GLU, *(f"self_attn.{name}" for name in _LATENT_PROJECTIONS)),
        {
            **{key: theirs for key, theirs in RMS.items() if "head_count_kv" not in key and "key_length" not in key},
            **{key: theirs for key, theirs in _LATENT.items() if "lora" in key or "rope" in key},
        },
        constants={**SILU, "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256},  # as in llama.cpp's code
        rotary="latent",
    ),
}
MIXTURES["qwen3vlmoe"] = replace(MIXTURES["qwen3moe"], ignored=SECTIONS)
