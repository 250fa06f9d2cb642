"""GGUF architectures without experts."""

from __future__ import annotations

from dataclasses import replace

from easydel.weights.gguf_architecture import (
    ATTENTION,
    BIASES,
    COMMON_KEYS,
    GLU,
    LAYER_NORM,
    LLAMA_MODULES,
    NORMS,
    ONE_MORE,
    QK_NORMS,
    RMS,
    ROTARY,
    SILU,
    WINDOW,
    Architecture,
    decoder,
)
from easydel.weights.gguf_tensors import by_group, by_head, convolution, exponential, flat, transposed

SECTIONS = ("rope.dimension_sections", "n_deepstack_layers")
_AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")  # of parts: OLMo 2 and EXAONE 4 have none before
_GPT2 = {
    "context_length": "n_positions",
    "block_count": "n_layer",
    "embedding_length": "n_embd",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
_GPT2_MATRICES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
_GPT2_MODULES = (
    *("transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head"),
    *(f"transformer.h.{{}}.{module}" for module in ("ln_1", "ln_2", *_GPT2_MATRICES)),
)
GRANITE = {
    **RMS,
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
_FALCON = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "ffn_hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_kv_heads",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
_MAMBA = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "ssm.conv_kernel": "conv_kernel",
    "ssm.inner_size": "intermediate_size",
    "ssm.state_size": "state_size",
    "ssm.time_step_rank": "time_step_rank",
    "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
}
_MAMBA_MODULES = ("norm", *(f"mixer.{name}" for name in ("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj")))
SSM_CHANGES = {  # of Mamba 2
    r"ssm_a": exponential,
    r"ssm_d": flat,
    r"ssm_norm\.weight": flat,
    r"ssm_conv1d\.weight": convolution,
}
_HEADS = ("attention.head_count_kv", "attention.key_length")
_NO_ATTENTION = ("context_length", "feed_forward_length", "attention.head_count")
CONV = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "norm_eps",
    "shortconv.l_cache": "conv_L_cache",
}
CONV_MODULES = (
    *("model.embed_tokens", "model.embedding_norm", "lm_head"),
    *(f"model.layers.{{}}.{name}" for name in ("operator_norm", "ffn_norm", "self_attn.out_proj", *ATTENTION[:3])),
    *(f"model.layers.{{}}.self_attn.{name}_layernorm" for name in "qk"),
    *(f"model.layers.{{}}.conv.{name}" for name in ("conv", "in_proj", "out_proj")),
    *(f"model.layers.{{}}.feed_forward.w{number}" for number in (1, 2, 3)),
)
CONV_CHANGES = {r"shortconv\.conv\.weight": convolution}


def _fused(prefix: str, *modules: str) -> tuple[str, ...]:
    """Returns modules with BLOOM's names inside layers, and a fused projection of queries, keys and values."""
    own = ("query_key_value", "dense")
    attention = "attention" if prefix.startswith("gpt_neox") else "self_attention"
    layers = [f"{attention}.{name}" for name in own] + ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h", *modules]
    return tuple(f"{prefix}.{{}}.{name}" for name in layers)


DENSE: dict[str, Architecture] = {
    "llama": Architecture("llama", LLAMA_MODULES, constants=SILU, switches=BIASES, changes=ROTARY),
    "mistral3": Architecture(
        "ministral3", LLAMA_MODULES, {**RMS, **WINDOW}, constants=SILU, changes=ROTARY, mscale=1.0
    ),
    "qwen2": Architecture("qwen2", LLAMA_MODULES, constants=SILU),
    # of Qwen-VL, whose text has one position for all sections of its rope
    "qwen2vl": Architecture("qwen2", LLAMA_MODULES, constants=SILU, ignored=SECTIONS),
    "qwen3": Architecture(
        "qwen3",
        decoder(*NORMS, *ATTENTION, *QK_NORMS, *GLU),
        constants=SILU,
        switches={"attention_bias": "blk.0.attn_q.bias"},
    ),
    "phi2": Architecture(
        "phi",
        (
            *("model.embed_tokens", "model.final_layernorm", "lm_head"),
            *(f"model.layers.{{}}.{name}" for name in ("input_layernorm", *ATTENTION[:3], "self_attn.dense")),
            *(f"model.layers.{{}}.mlp.fc{number}" for number in (1, 2)),
        ),
        LAYER_NORM,
        constants={"hidden_act": "gelu_new"},
        rotary="part",
    ),
    "phi3": Architecture(
        "phi3",
        decoder(*NORMS, "self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
        {**RMS, **WINDOW},
        constants=SILU,
        rotary="part",
    ),
    "starcoder": Architecture(
        "gpt_bigcode", _GPT2_MODULES, _GPT2, {"activation_function": "gelu_pytorch_tanh"}, rotary=None
    ),
    "starcoder2": Architecture(
        "starcoder2",
        decoder(*NORMS, *ATTENTION, "mlp.c_fc", "mlp.c_proj"),
        {**COMMON_KEYS, **WINDOW, "attention.layer_norm_epsilon": "norm_epsilon"},
        constants={"hidden_act": "gelu_pytorch_tanh"},
        switches={"use_bias": "blk.0.attn_q.bias"},
    ),
    "stablelm": Architecture(
        "stablelm",
        LLAMA_MODULES,
        LAYER_NORM,
        constants=SILU,
        switches={"use_qkv_bias": "blk.0.attn_q.bias", "qk_layernorm": "blk.0.attn_q_norm.weight"},
        rotary="part",
    ),
    "gpt2": Architecture(
        "gpt2",
        _GPT2_MODULES,
        _GPT2,
        constants={"activation_function": "gelu_new"},
        changes={r"(attn|ffn)_.*\.weight": transposed},
        rotary=None,
    ),
    "olmo": Architecture(
        "olmo",
        decoder(*ATTENTION, *GLU),
        {**COMMON_KEYS, "attention.clamp_kqv": "clip_qkv"},
        constants=SILU,
        switches={"attention_bias": "blk.0.attn_q.bias"},
        changes=ROTARY,
        ignored=("attention.layer_norm_epsilon",),
    ),
    "olmo2": Architecture(
        "olmo2",
        decoder(*_AFTER, *ATTENTION, *QK_NORMS, *GLU),
        constants=SILU,
        switches={"attention_bias": "blk.0.attn_q.bias"},
    ),
    "olmo2 with windows": Architecture(
        "olmo3",
        decoder(*_AFTER, *ATTENTION, *QK_NORMS, *GLU),
        {**RMS, **WINDOW},
        constants=SILU,
        switches={"attention_bias": "blk.0.attn_q.bias"},
    ),
    "granite": Architecture("granite", LLAMA_MODULES, GRANITE, constants=SILU, switches=BIASES, changes=ROTARY),
    "command-r": Architecture(
        "cohere",
        decoder("input_layernorm", *ATTENTION, *QK_NORMS, *GLU),
        {**LAYER_NORM, "logit_scale": "logit_scale"},
        constants=SILU,
        switches={"use_qk_norm": "blk.0.attn_q_norm.weight", "attention_bias": "blk.0.attn_q.bias"},
    ),
    "cohere2": Architecture(
        "cohere2",
        decoder("input_layernorm", *ATTENTION, *GLU),
        {**LAYER_NORM, **WINDOW, "logit_scale": "logit_scale"},
        constants=SILU,
    ),
    "nemotron": Architecture(
        "nemotron",
        decoder(*NORMS, *ATTENTION, "mlp.up_proj", "mlp.down_proj"),
        {**COMMON_KEYS, "attention.layer_norm_epsilon": "norm_eps"},
        constants={"hidden_act": "relu2"},
        switches=BIASES,
        changes=ONE_MORE,
        ignored=("attention.layer_norm_rms_epsilon",),
        rotary="part",
    ),
    "exaone4": Architecture(
        "exaone4", decoder(*_AFTER, *ATTENTION, *QK_NORMS, *GLU), {**RMS, **WINDOW}, constants=SILU
    ),
    "jais2": Architecture(
        "jais2",
        decoder(*NORMS, *ATTENTION, "mlp.up_proj", "mlp.down_proj"),
        LAYER_NORM,
        constants={"hidden_act": "relu2"},
        switches=BIASES,
    ),
    "bitnet": Architecture(
        "bitnet",
        LLAMA_MODULES,
        constants=SILU,
        switches={"attention_bias": "blk.0.attn_q.bias"},
        exact={
            "blk.{}.attn_sub_norm.weight": "model.layers.{}.self_attn.attn_sub_norm.weight",
            "blk.{}.ffn_sub_norm.weight": "model.layers.{}.mlp.ffn_sub_norm.weight",
        },
    ),
    "apertus": Architecture(
        "apertus",
        decoder(
            *("attention_layernorm", "feedforward_layernorm", *ATTENTION, *QK_NORMS, "mlp.up_proj", "mlp.down_proj")
        ),
        constants={"hidden_act": "xielu"},
        switches={"attention_bias": "blk.0.attn_q.bias"},
        numbers={
            **{f"model.layers.{{}}.mlp.act_fn.alpha_{side}": (f"xielu.alpha_{side}", (1,)) for side in "pn"},
            **{f"model.layers.{{}}.mlp.act_fn.{name}": (f"xielu.{name}", ()) for name in ("beta", "eps")},
        },
    ),
    "smollm3": Architecture("smollm3", LLAMA_MODULES, constants=SILU, switches=BIASES, changes=ROTARY),
    "ernie4_5": Architecture("ernie4_5", LLAMA_MODULES, constants=SILU, switches={"use_bias": "blk.0.attn_q.bias"}),
    "hunyuan-dense": Architecture(
        "hunyuan_v1_dense",
        decoder(*NORMS, *ATTENTION, "self_attn.query_layernorm", "self_attn.key_layernorm", *GLU),
        constants=SILU,
        switches={"attention_bias": "blk.0.attn_q.bias"},
    ),
    "chatglm": Architecture(
        "glm",
        decoder(*NORMS, *ATTENTION, "mlp.gate_up_proj", "mlp.down_proj"),
        constants=SILU,
        cut={"attn_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")},  # in files of authors' weights
        rotary="part",
    ),
    "glm4": Architecture(
        "glm4",
        decoder(
            *NORMS, "post_self_attn_layernorm", "post_mlp_layernorm", *ATTENTION, "mlp.gate_up_proj", "mlp.down_proj"
        ),
        constants=SILU,
        switches={"attention_bias": "blk.0.attn_q.bias"},
        rotary="part",
    ),
    "seed_oss": Architecture(
        "seed_oss",
        LLAMA_MODULES,
        constants=SILU,
        switches={**BIASES, "attention_out_bias": "blk.0.attn_output.bias"},
    ),
    "arcee": Architecture(
        "arcee",
        decoder(*NORMS, *ATTENTION, "mlp.up_proj", "mlp.down_proj"),
        constants={"hidden_act": "relu2"},
        switches=BIASES,
        changes=ROTARY,
    ),
    "gptneox": Architecture(
        "gpt_neox",
        (
            *("gpt_neox.embed_in", "gpt_neox.final_layer_norm", "embed_out"),
            *_fused("gpt_neox.layers", *NORMS),
        ),
        {
            **{key: theirs for key, theirs in LAYER_NORM.items() if key not in _HEADS},
            "use_parallel_residual": "use_parallel_residual",
        },
        constants={"hidden_act": "gelu"},
        switches={"attention_bias": "blk.0.attn_qkv.bias"},
        changes={r"attn_qkv\.(weight|bias)": by_head("num_attention_heads")},
        rotary="part",
    ),
    "falcon": Architecture(
        "falcon",
        (
            *("transformer.word_embeddings", "transformer.ln_f", "lm_head"),
            *_fused("transformer.h", "input_layernorm"),
        ),
        _FALCON,
        constants={"bias": False, "alibi": False, "parallel_attn": True, "activation": "gelu"},
        changes={r"attn_qkv\.weight": by_group},
    ),
    "falcon with two norms": Architecture(
        "falcon",
        (
            *("transformer.word_embeddings", "transformer.ln_f", "lm_head"),
            *_fused("transformer.h", "ln_attn", "ln_mlp"),
        ),
        _FALCON,
        constants={"bias": False, "alibi": False, "parallel_attn": True, "activation": "gelu"},
        changes={r"attn_qkv\.weight": by_group},
    ),
    "bloom": Architecture(
        "bloom",
        (
            *("transformer.word_embeddings", "transformer.word_embeddings_layernorm", "transformer.ln_f", "lm_head"),
            *_fused("transformer.h", *NORMS),
        ),
        {
            "block_count": "n_layer",
            "embedding_length": "hidden_size",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        changes={r"attn_qkv\.(weight|bias)": by_head("n_head")},
        ignored=("context_length", "feed_forward_length", "attention.head_count_kv"),
        rotary=None,
    ),
    "mpt": Architecture(
        "mpt",
        (
            *("transformer.wte", "transformer.norm_f", "lm_head"),
            *(f"transformer.blocks.{{}}.{name}" for name in ("norm_1", "norm_2", "attn.Wqkv", "attn.out_proj")),
            *(f"transformer.blocks.{{}}.ffn.{name}" for name in ("up_proj", "down_proj")),
        ),
        {
            "context_length": "max_seq_len",
            "block_count": "n_layers",
            "embedding_length": "d_model",
            "attention.head_count": "n_heads",
        },
        ignored=("attention.layer_norm_epsilon",),
        rotary=None,
    ),
    "mamba": Architecture(
        "mamba",
        (
            *("backbone.embeddings", "backbone.norm_f", "lm_head"),
            *(f"backbone.layers.{{}}.{name}" for name in _MAMBA_MODULES),
        ),
        _MAMBA,
        switches={"use_conv_bias": "blk.0.ssm_conv1d.bias", "use_bias": "blk.0.ssm_in.bias"},
        exact={"blk.{}.ssm_a": "backbone.layers.{}.mixer.A_log", "blk.{}.ssm_d": "backbone.layers.{}.mixer.D"},
        changes={r"ssm_a": exponential, r"ssm_conv1d\.weight": convolution},
        ignored=(*_NO_ATTENTION, "ssm.dt_b_c_rms"),
        rotary=None,
    ),
    "mamba2": Architecture(
        "mamba2",
        (
            *("backbone.embeddings", "backbone.norm_f", "lm_head", "backbone.layers.{}.norm"),
            *(f"backbone.layers.{{}}.mixer.{name}" for name in ("in_proj", "conv1d", "norm", "out_proj")),
        ),
        {key: theirs for key, theirs in _MAMBA.items() if key not in ("ssm.time_step_rank", "ssm.inner_size")}
        | {"ssm.time_step_rank": "num_heads", "ssm.group_count": "n_groups"},
        switches={"use_conv_bias": "blk.0.ssm_conv1d.bias", "use_bias": "blk.0.ssm_in.bias"},
        exact={
            "blk.{}.ssm_a": "backbone.layers.{}.mixer.A_log",
            "blk.{}.ssm_d": "backbone.layers.{}.mixer.D",
            "blk.{}.ssm_dt.bias": "backbone.layers.{}.mixer.dt_bias",
        },
        changes=SSM_CHANGES,
        ignored=_NO_ATTENTION,
        rotary=None,
    ),
    "lfm2": Architecture("lfm2", CONV_MODULES, CONV, {"block_auto_adjust_ff_dim": False}, changes=CONV_CHANGES),
}
DENSE["qwen3vl"] = replace(DENSE["qwen3"], ignored=SECTIONS)
DENSE["mamba with norms"] = replace(DENSE["mamba"], model_type="falcon_mamba")
