"""The Hugging Face side of each GGUF architecture: model type, config keys, modules, value changes.

It undoes the changes of llama.cpp's converters (https://github.com/ggml-org/llama.cpp/tree/master/conversion).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from easydel.errors import UnsupportedModelError

COMMON_KEYS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
}
_RMS = {**COMMON_KEYS, "attention.layer_norm_rms_epsilon": "rms_norm_eps"}
_GEMMA = {
    **_RMS,
    "attention.sliding_window": "sliding_window",
    "final_logit_softcapping": "final_logit_softcapping",
    "attn_logit_softcapping": "attn_logit_softcapping",
}
_GPT2 = {
    "context_length": "n_positions",
    "block_count": "n_layer",
    "embedding_length": "n_embd",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}


def _decoder(*of_layer: str) -> tuple[str, ...]:
    layers = tuple(f"model.layers.{{}}.{module}" for module in of_layer)
    return ("model.embed_tokens", "model.norm", "lm_head", *layers)


_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_GLU = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_FFN_NORMS = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
_LLAMA_MODULES = _decoder(*_NORMS, *_ATTENTION, *_GLU)
_GPT2_MATRICES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


@dataclass(frozen=True)
class Architecture:
    """One `general.architecture`. `modules` are Hugging Face's names, with {} for the layer.

    `keys` of the metadata (after "<name>.") become config keys; `constants` are config keys that the name implies;
    `switches` are config keys that say whether the tensor of that name exists. `permuted`: the rows of q and k are in
    the order of GGML's rotary embedding. `norm_offset` was added to the weights of norms. `transposed`: the layers'
    matrices are [out, in] in the file and [in, out] on the Hub. `rotary` is the share of each head that may be rotated.
    """

    model_type: str
    modules: tuple[str, ...]
    keys: Mapping[str, str] = field(default_factory=lambda: _RMS)
    constants: Mapping[str, Any] = field(default_factory=dict)
    switches: Mapping[str, str] = field(default_factory=dict)
    permuted: bool = False
    norm_offset: float = 0.0
    transposed: bool = False
    rotary: Literal["whole", "part"] | None = "whole"


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(
        "llama",
        _LLAMA_MODULES,
        constants={"hidden_act": "silu"},
        switches={"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"},
        permuted=True,
    ),
    "qwen2": Architecture("qwen2", _LLAMA_MODULES, constants={"hidden_act": "silu"}),
    "qwen3": Architecture(
        "qwen3",
        _decoder(*_NORMS, *_ATTENTION, *_QK_NORMS, *_GLU),
        constants={"hidden_act": "silu"},
        switches={"attention_bias": "blk.0.attn_q.bias"},
    ),
    "gemma": Architecture(
        "gemma",
        _LLAMA_MODULES,
        constants={"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"},
        norm_offset=1.0,
    ),
    "gemma2": Architecture(
        "gemma2",
        _decoder(*_NORMS, *_FFN_NORMS, *_ATTENTION, *_GLU),
        _GEMMA,
        constants={"hidden_activation": "gelu_pytorch_tanh"},
        norm_offset=1.0,
    ),
    "gemma3": Architecture(
        "gemma3_text",
        _decoder(*_NORMS, *_FFN_NORMS, *_ATTENTION, *_QK_NORMS, *_GLU),
        _GEMMA,
        constants={"hidden_activation": "gelu_pytorch_tanh"},
        norm_offset=1.0,
    ),
    "phi3": Architecture(
        "phi3",
        _decoder(*_NORMS, "self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
        {**_RMS, "attention.sliding_window": "sliding_window"},
        constants={"hidden_act": "silu"},
        rotary="part",
    ),
    "starcoder2": Architecture(
        "starcoder2",
        _decoder(*_NORMS, *_ATTENTION, "mlp.c_fc", "mlp.c_proj"),
        {
            **COMMON_KEYS,
            "attention.layer_norm_epsilon": "norm_epsilon",
            "attention.sliding_window": "sliding_window",
        },
        constants={"hidden_act": "gelu_pytorch_tanh"},
        switches={"use_bias": "blk.0.attn_q.bias"},
    ),
    "stablelm": Architecture(
        "stablelm",
        _LLAMA_MODULES,
        {**COMMON_KEYS, "attention.layer_norm_epsilon": "layer_norm_eps"},
        constants={"hidden_act": "silu"},
        switches={"use_qkv_bias": "blk.0.attn_q.bias", "qk_layernorm": "blk.0.attn_q_norm.weight"},
        rotary="part",
    ),
    "gpt2": Architecture(
        "gpt2",
        (
            "transformer.wte",
            "transformer.wpe",
            "transformer.ln_f",
            "lm_head",
            *(f"transformer.h.{{}}.{module}" for module in ("ln_1", "ln_2", *_GPT2_MATRICES)),
        ),
        _GPT2,
        constants={"activation_function": "gelu_new"},
        transposed=True,
        rotary=None,
    ),
}


def find_architecture(metadata: Mapping[str, Any], file: Any = None) -> tuple[str, Architecture]:
    """Returns the file's architecture by name. Raises UnsupportedModelError, which lists the known ones."""
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"the GGUF architecture {str(name)[:100]!r} is not supported",
            file=file,
            hint=f"known: {', '.join(ARCHITECTURES)}",
        )
    return name, ARCHITECTURES[name]
