"""GGUF architectures of Gemma, and the config keys that follow from several of their metadata."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

from easydel.weights.gguf_architecture import (
    ATTENTION,
    GLU,
    LLAMA_MODULES,
    NORMS,
    ONE_MORE,
    QK_NORMS,
    RMS,
    WINDOW,
    Architecture,
    decoder,
)
from easydel.weights.gguf_metadata import FULL, SLIDING, Metadata, every_nth, kv_heads
from easydel.weights.gguf_rope import rotated_share
from easydel.weights.gguf_tensors import after

_GELU = {"hidden_activation": "gelu_pytorch_tanh"}
_CAPPED = {
    **RMS,
    **WINDOW,
    "final_logit_softcapping": "final_logit_softcapping",
    "attn_logit_softcapping": "attn_logit_softcapping",
}
_FFN_NORMS = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
_FOR_LAYERS = ("model.embed_tokens_per_layer", "model.per_layer_model_projection", "model.per_layer_projection_norm")
_OF_LAYER = ("per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm")
_PER_LAYER = {
    "attention.shared_kv_layers": "num_kv_shared_layers",
    "embedding_length_per_layer_input": "hidden_size_per_layer_input",
}
_GEMMA3N = (
    *(f"altup.{name}" for name in ("correction_coefs", "modality_router", "prediction_coefs", "router_norm")),
    *(f"laurel.{name}" for name in ("linear_left", "linear_right", "post_laurel_norm")),
)
_GEMMA3_PATTERN = 6  # every sixth layer sees everything; llama.cpp has the number in its code, too
_GEMMA3N_PATTERN = 5
_OTHERS = ("attention.head_count_kv", "attention.key_length", "feed_forward_length")  # by layer in Gemma 4

GEMMA: dict[str, Architecture] = {
    "gemma": Architecture(
        "gemma",
        LLAMA_MODULES,
        constants={**_GELU, "hidden_act": "gelu_pytorch_tanh"},
        changes=ONE_MORE,
    ),
    "gemma2": Architecture(
        "gemma2", decoder(*NORMS, *_FFN_NORMS, *ATTENTION, *GLU), _CAPPED, constants=_GELU, changes=ONE_MORE
    ),
    "gemma3": Architecture(
        "gemma3_text",
        decoder(*NORMS, *_FFN_NORMS, *ATTENTION, *QK_NORMS, *GLU),
        _CAPPED,
        constants=_GELU,
        changes=ONE_MORE,
    ),
    "gemma3n": Architecture(
        "gemma3n_text",
        (*_FOR_LAYERS, *decoder(*NORMS, *_FFN_NORMS, *ATTENTION, *QK_NORMS, *GLU, *_GEMMA3N, *_OF_LAYER)),
        {
            **_CAPPED,
            **_PER_LAYER,
            "altup.active_idx": "altup_active_idx",
            "altup.num_inputs": "altup_num_inputs",
        },
        constants=_GELU,
        exact={
            "blk.{}.altup_correct_scale.weight": "model.layers.{}.altup.correct_output_scale",
            "altup_proj.weight": "model.altup_projections.{}.weight",
            "altup_unembd_proj.weight": "model.altup_unembed_projections.{}.weight",
        },
    ),
    "gemma4": Architecture(
        "gemma4_text",
        (
            *_FOR_LAYERS,
            *decoder(*NORMS, *_FFN_NORMS, *ATTENTION, *QK_NORMS, *GLU, *_OF_LAYER, "router.proj"),
            *(f"model.layers.{{}}.{norm}_{n}" for norm, n in zip((*_FFN_NORMS, _FFN_NORMS[1]), (2, 1, 2), strict=True)),
        ),
        {
            **{key: theirs for key, theirs in _CAPPED.items() if key not in (*_OTHERS, "attn_logit_softcapping")},
            **_PER_LAYER,
            "expert_count": "num_experts",
            "expert_used_count": "top_k_experts",
            "expert_feed_forward_length": "moe_intermediate_size",
        },
        constants=_GELU,
        exact={
            "blk.{}.layer_output_scale.weight": "model.layers.{}.layer_scalar",
            "blk.{}.ffn_gate_inp.scale": "model.layers.{}.router.scale",
            "blk.{}.ffn_down_exps.scale": "model.layers.{}.router.per_expert_scale",
            "blk.{}.ffn_gate_up_exps.weight": "model.layers.{}.experts.gate_up_proj",
            "blk.{}.ffn_down_exps.weight": "model.layers.{}.experts.down_proj",
        },
        joined={"model.layers.{}.experts.gate_up_proj": ("ffn_gate_exps.weight", "ffn_up_exps.weight", after)},
        ignored=("attention.value_length_swa",),
        rotary=None,
    ),
}


def _scale(config: Mapping[str, Any], largest: int) -> dict[str, Any]:
    """Returns the scale of queries: head_dim ** -0.5, but (hidden / heads) ** -0.5 in the model of `largest` layers.

    The largest model is the 27B one. No metadata holds the scale; llama.cpp, too, goes by the number of layers.
    """
    wide = config["hidden_size"] // config["num_attention_heads"]
    return {"query_pre_attn_scalar": wide if config["num_hidden_layers"] == largest else config["head_dim"]}


def gemma2(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    types = [FULL if layer % 2 else SLIDING for layer in range(layers)]
    return {"layer_types": types, **_scale(config, largest=46)}


def gemma3(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **every_nth(_GEMMA3_PATTERN)(metadata, config),
        "rope_local_base_freq": metadata.number("rope.freq_base_swa", 10000.0),
        **_scale(config, largest=62),
    }


def gemma3n(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """The share of activations that is cut off is stored as that share's quantile of a normal distribution."""
    layers = config["num_hidden_layers"]
    quantiles = metadata.by_layer("activation_sparsity_scale", layers) or [float("-inf")] * layers
    return {
        **every_nth(_GEMMA3N_PATTERN)(metadata, config),
        **_vocabulary_per_layer(metadata),
        **metadata.rows({"laurel_rank": "blk.0.laurel_l.weight"}),
        "rope_local_base_freq": metadata.number("rope.freq_base_swa", 10000.0),
        "activation_sparsity_pattern": [round(NormalDist().cdf(quantile), 4) for quantile in quantiles],
    }


def _vocabulary_per_layer(metadata: Metadata) -> dict[str, Any]:
    return metadata.rows({"vocab_size_per_layer_input": "per_layer_token_embd.weight"})


def gemma4(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes differ between kinds of layers, and between those that have keys of their own and those that share them."""
    layers, wide = config["num_hidden_layers"], metadata.number("attention.key_length")
    narrow, single = metadata.number("attention.key_length_swa", wide), metadata.raw("feed_forward_length")
    kinds = every_nth(_GEMMA3_PATTERN)(metadata, config)["layer_types"]
    kv, widths = kv_heads(metadata, layers), metadata.by_layer("feed_forward_length", layers) or [single] * layers
    full, sliding = ([count for count, kind in zip(kv, kinds, strict=True) if kind == one] for one in (FULL, SLIDING))
    as_values = [f"blk.{i}.attn_v.weight" not in metadata.tensors for i, kind in enumerate(kinds) if kind == FULL]
    equal = metadata.known and bool(as_values) and as_values[0]
    rope = {"rope_type": "default", "rope_theta": metadata.number("rope.freq_base_swa", 10000.0)}
    if (rotated := metadata.number("rope.dimension_count_swa", narrow)) != narrow:
        rope["partial_rotary_factor"] = rotated / narrow
    share = rotated_share(metadata.tensors, wide)
    whole = {"rope_type": "proportional", "rope_theta": metadata.number("rope.freq_base", 1000000.0)}
    return {
        **_vocabulary_per_layer(metadata),
        "layer_types": kinds,
        "head_dim": narrow,
        "global_head_dim": wide,
        "num_key_value_heads": (sliding or full)[0],
        "num_global_key_value_heads": full[0] if equal else None,
        "attention_k_eq_v": equal,
        "intermediate_size": min(widths),
        "use_double_wide_mlp": max(widths) > min(widths),
        "enable_moe_block": bool(config.get("num_experts")),
        "rope_parameters": {FULL: {**whole, "partial_rotary_factor": share}, SLIDING: rope},
    }
