"""Config keys of single GGUF architectures that need more than a row of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import Any

from easydel.weights.gguf_metadata import Metadata

Extra = Callable[[Metadata, Mapping[str, Any]], dict[str, Any]]
FULL, SLIDING = "full_attention", "sliding_attention"
_GEMMA3_PATTERN = 6  # every sixth layer sees everything; llama.cpp has the number in its code, too
_GEMMA3N_PATTERN = 5
_PATTERN = 4  # of Cohere 2, EXAONE 4 and OLMo 3, likewise


def every_nth(number: int) -> Extra:
    """Windows in all but every n-th layer, unless the file has a list of its own."""

    def layers(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
        count = config["num_hidden_layers"]
        own = metadata.by_layer("attention.sliding_window_pattern", count)
        slides = own or [bool((layer + 1) % number) for layer in range(count)]
        if not config.get("sliding_window"):
            slides = [False] * count
        return {"layer_types": [SLIDING if one else FULL for one in slides]}

    return layers


def _gemma_attention(config: Mapping[str, Any], largest: int) -> dict[str, Any]:
    """Returns the scale of queries: head_dim ** -0.5, but (hidden / heads) ** -0.5 in the model of `largest` layers.

    The largest model is the 27B one. No metadata holds the scale; llama.cpp, too, goes by the number of layers.
    """
    wide = config["hidden_size"] // config["num_attention_heads"]
    return {"query_pre_attn_scalar": wide if config["num_hidden_layers"] == largest else config["head_dim"]}


def _gemma2(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    types = [FULL if layer % 2 else SLIDING for layer in range(layers)]
    return {"layer_types": types, **_gemma_attention(config, largest=46)}


def _gemma3(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **every_nth(_GEMMA3_PATTERN)(metadata, config),
        "rope_local_base_freq": metadata.number("rope.freq_base_swa", 10000.0),
        **_gemma_attention(config, largest=62),
    }


def _gemma3n(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """The share of activations that is cut off is stored as that share's quantile of a normal distribution."""
    layers, tensors = config["num_hidden_layers"], metadata.tensors
    quantiles = metadata.by_layer("activation_sparsity_scale", layers) or [float("-inf")] * layers
    shapes = {"laurel_rank": "blk.0.laurel_l.weight", "vocab_size_per_layer_input": "per_layer_token_embd.weight"}
    return {
        **every_nth(_GEMMA3N_PATTERN)(metadata, config),
        "rope_local_base_freq": metadata.number("rope.freq_base_swa", 10000.0),
        "activation_sparsity_pattern": [round(NormalDist().cdf(quantile), 4) for quantile in quantiles],
        **{key: tensors[name].shape[0] for key, name in shapes.items() if name in tensors},
    }


def _phi3(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    original = metadata.number("rope.scaling.original_context_length", config["max_position_embeddings"])
    return {"original_max_position_embeddings": original}


def _stablelm(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"use_parallel_residual": "blk.0.ffn_norm.weight" not in metadata.tensors} if metadata.known else {}


def _qwen2moe(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"norm_topk_prob": config.get("norm_topk_prob", False)}


def _qwen3moe(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"norm_topk_prob": config.get("norm_topk_prob", True)}  # as in every published model


def _falcon(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    grouped = config.get("num_kv_heads", 1) != 1
    two = "blk.0.attn_norm_2.weight" in metadata.tensors
    norms = {"num_ln_in_parallel_attn": 2 if two else 1} if grouped else {}
    return {"new_decoder_architecture": grouped, "multi_query": not grouped, **norms}


def _mpt(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    steepest, limit = metadata.get("attention.max_alibi_bias", 0), metadata.get("attention.clamp_kqv")
    width = metadata.number("feed_forward_length", 4 * config["d_model"])
    attention = {"alibi": bool(steepest), "alibi_bias_max": steepest or 8, "clip_qkv": limit or None}
    return {"attn_config": attention, "expansion_ratio": width // config["d_model"]}


def _starcoder(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"multi_query": metadata.get("attention.head_count_kv", 1) == 1}


def _mamba2(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    inner, heads = metadata.number("ssm.inner_size"), config["num_heads"]
    return {"head_dim": inner // heads, "expand": inner / config["hidden_size"]}


def _kv_heads(metadata: Metadata, layers: int) -> list[int]:
    """The number of heads with keys in each layer: 0 in those without attention."""
    single = [metadata.raw("attention.head_count_kv")] * layers
    return metadata.by_layer("attention.head_count_kv", layers) or [int(count or 0) for count in single]


def _in_some_layer(metadata: Metadata, biases: Mapping[str, str]) -> dict[str, Any]:
    """Whether some layer has the tensor of that name, for each config key."""
    names = metadata.tensors
    found = {key: any(name.endswith(f".{bias}") for name in names) for key, bias in biases.items()}
    return found if metadata.known else {}


def _steps(key: str, chosen: list[int], layers: int) -> dict[str, Any]:
    """Returns the first of the `chosen` layers, and the distance to the next, which is always the same."""
    first, *others = chosen or [layers]
    return {f"{key}_offset": first, f"{key}_period": others[0] - first if others else layers + 1}


def _jamba(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    kv = _kv_heads(metadata, layers)
    sparse = [layer for layer in range(layers) if f"blk.{layer}.ffn_gate_inp.weight" in metadata.tensors]
    return {
        **_in_some_layer(metadata, {"mamba_conv_bias": "ssm_conv1d.bias", "mamba_proj_bias": "ssm_in.bias"}),
        **_steps("attn_layer", [layer for layer, heads in enumerate(kv) if heads], layers),
        **(_steps("expert_layer", sparse, layers) if sparse else {}),
        "num_key_value_heads": max(kv),
        "mamba_expand": metadata.number("ssm.inner_size") // config["hidden_size"],
    }


def _nemotron_h(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """A layer is attention, a feed-forward, or Mamba 2 if it has neither keys nor a width."""
    layers, heads = config["num_hidden_layers"], config["mamba_num_heads"]
    kv, widths = _kv_heads(metadata, layers), metadata.by_layer("feed_forward_length", layers) or [0] * layers
    epsilon = metadata.get("attention.layer_norm_epsilon")
    kinds = [FULL if count else "mlp" if width else "linear_attention" for count, width in zip(kv, widths, strict=True)]
    biases = {"attention_bias": "attn_q.bias", "mlp_bias": "ffn_up.bias", "use_conv_bias": "ssm_conv1d.bias"}
    return {
        **_in_some_layer(metadata, biases | {"mamba_proj_bias": "ssm_in.bias"}),
        "layers_block_type": kinds,
        "num_key_value_heads": max(kv),
        "intermediate_size": max(widths),
        "mamba_head_dim": metadata.number("ssm.inner_size") // heads,
        "layer_norm_epsilon": metadata.get("attention.layer_norm_rms_epsilon", epsilon),
    }


def _qwen3_next(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **_qwen3moe(metadata, config),
        **_in_some_layer(metadata, {"attention_bias": "attn_q.bias"}),
        "linear_value_head_dim": metadata.number("ssm.inner_size") // config["linear_num_value_heads"],
    }


def _granitehybrid(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """A layer without keys of attention is Mamba 2; "finetuned" says whether attention rotates."""
    layers, inner, heads = config["num_hidden_layers"], metadata.number("ssm.inner_size"), config["mamba_n_heads"]
    kv = _kv_heads(metadata, layers)
    biases = {"attention_bias": "attn_q.bias", "mamba_conv_bias": "ssm_conv1d.bias", "mamba_proj_bias": "ssm_in.bias"}
    return {
        **_in_some_layer(metadata, biases),
        "layer_types": [FULL if count else "linear_attention" for count in kv],
        "num_key_value_heads": max(kv),
        "mamba_d_head": inner // heads,
        "mamba_expand": inner // config["hidden_size"],
        "position_embedding_type": "rope" if metadata.get("rope.scaling.finetuned", True) else "nope",
    }


def _lfm2(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """A layer without keys of attention is a short convolution."""
    kv = _kv_heads(metadata, config["num_hidden_layers"])
    return {"layer_types": [FULL if heads else "conv" for heads in kv], "num_key_value_heads": max(kv)}


def _deepseek2(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of heads: newer files state those of latent attention beside those of a cache of latents."""
    rotated = config["qk_rope_head_dim"]
    keys = metadata.number("attention.key_length_mla", metadata.get("attention.key_length"))
    values = metadata.number("attention.value_length_mla", metadata.get("attention.value_length"))
    metadata.raw("attention.head_count_kv")  # 1 where latents are cached
    heads = {"num_key_value_heads": config["num_attention_heads"], "q_lora_rank": config.get("q_lora_rank")}
    if config["model_type"] == "deepseek_v2" and config.get("n_group", 0) > 1:
        heads["topk_method"] = "group_limited_greedy"
    return {**heads, "qk_nope_head_dim": keys - rotated, "v_head_dim": values}


def with_mscale(scaling: dict[str, Any], multiplier: float | None, unit: float | None) -> dict[str, Any]:
    """Returns YaRN's settings with its two factors on attention, which files have as one number, times `unit`."""
    if not multiplier or not unit:
        return scaling
    mscale = round(multiplier / unit, 6)
    return {**scaling, "mscale": mscale, "mscale_all_dim": mscale}


def _ministral3(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    growth, scaling = metadata.get("attention.temperature_scale"), config.get("rope_scaling")
    return {"rope_scaling": {**scaling, "llama_4_scaling_beta": growth}} if scaling and growth else {}


def _gpt_oss(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    scaling = config.get("rope_scaling")
    return {"rope_scaling": {**scaling, "truncate": False}} if scaling else {}


EXTRAS: Mapping[str, Extra] = {
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "gemma3n_text": _gemma3n,
    "phi3": _phi3,
    "stablelm": _stablelm,
    "qwen2_moe": _qwen2moe,
    "qwen3_moe": _qwen3moe,
    "falcon": _falcon,
    "mpt": _mpt,
    "gpt_bigcode": _starcoder,
    "ministral3": _ministral3,
    "qwen3_next": _qwen3_next,
    "jamba": _jamba,
    "nemotron_h": _nemotron_h,
    "granitemoehybrid": _granitehybrid,
    "mamba2": _mamba2,
    "lfm2": _lfm2,
    "lfm2_moe": _lfm2,
    "deepseek_v2": _deepseek2,
    "deepseek_v3": _deepseek2,
    "gpt_oss": _gpt_oss,
    **dict.fromkeys(("cohere2", "exaone4", "exaone_moe", "olmo3"), every_nth(_PATTERN)),
}
