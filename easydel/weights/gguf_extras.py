"""Config keys of single GGUF architectures that need more than a row of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from easydel.weights import gguf_extras_hybrids as hybrids, gguf_gemma as gemma, gguf_towers as towers
from easydel.weights.gguf_metadata import Extra, Metadata, every_nth

_PATTERN = 4  # of Cohere 2, EXAONE 4, OLMo 3 and AFMoE; llama.cpp has the number in its code, too


def _phi3(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    original = metadata.number("rope.scaling.original_context_length", config["max_position_embeddings"])
    return {"original_max_position_embeddings": original}


def _stablelm(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"use_parallel_residual": "blk.0.ffn_norm.weight" not in metadata.tensors} if metadata.known else {}


def _qwen2moe(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"norm_topk_prob": config.get("norm_topk_prob", False)}


def _qwen3moe(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"norm_topk_prob": config.get("norm_topk_prob", True)}  # as in every published model


def _llama4(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """What no metadata holds is as llama.cpp has it: only the model of 128 experts has no norms of queries and keys.

    A window of 0 says that no layer sees chunks, and that all rotate.
    """
    layers, chunked = config["num_hidden_layers"], metadata.get("attention.sliding_window") != 0
    whole = {} if chunked else {"no_rope_layers": [1] * layers, "layer_types": ["full_attention"] * layers}
    return {**whole, "use_qk_norm": config.get("num_local_experts") != 128}


def _minicpm3(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    metadata.raw("attention.head_count_kv")  # as many as of queries
    heads = {"num_key_value_heads": config["num_attention_heads"], "q_lora_rank": config.get("q_lora_rank")}
    return {**heads, "qk_nope_head_dim": metadata.number("attention.key_length") - config["qk_rope_head_dim"]}


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


def _glm_moe_dsa(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Which layers have an indexer: older files do not say. Then a model of a million tokens is GLM-5.2, as llama.cpp
    has it: the first three layers have one, and every fourth after them."""
    layers = config["num_hidden_layers"]
    stated = metadata.by_layer("attention.indexer.types", layers)
    long = config["max_position_embeddings"] >= 1 << 20
    own = stated or [not long or layer < 3 or (layer - 2) % 4 == 0 for layer in range(layers)]
    return {**_deepseek2(metadata, config), "indexer_types": ["full" if one else "shared" for one in own]}


def _dbrx(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    kv_heads = metadata.number("attention.head_count_kv", config["num_attention_heads"])
    attention = {"kv_n_heads": kv_heads, "clip_qkv": metadata.get("attention.clamp_kqv")}
    experts = {
        "moe_num_experts": "expert_count",
        "moe_top_k": "expert_used_count",
        "ffn_hidden_size": "feed_forward_length",
    }
    return {
        "attn_config": attention | {"rope_theta": config["rope_theta"]},
        "ffn_config": {theirs: metadata.number(ours) for theirs, ours in experts.items()},
    }


def _glm(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    biases = ("blk.0.attn_q.bias", "blk.0.attn_qkv.bias")
    return {"attention_bias": not metadata.tensors.keys().isdisjoint(biases)} if metadata.known else {}


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
    "gemma2": gemma.gemma2,
    "gemma3_text": gemma.gemma3,
    "gemma3n_text": gemma.gemma3n,
    "gemma4_text": gemma.gemma4,
    "phi3": _phi3,
    "stablelm": _stablelm,
    "qwen2_moe": _qwen2moe,
    "qwen3_moe": _qwen3moe,
    "llama4_text": _llama4,
    "minicpm3": _minicpm3,
    "falcon": _falcon,
    "mpt": _mpt,
    "gpt_bigcode": _starcoder,
    "ministral3": _ministral3,
    "qwen3_next": hybrids.qwen3_next,
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text"), hybrids.qwen3_5),
    "falcon_h1": hybrids.falcon_h1,
    "kimi_linear": hybrids.kimi_linear,
    "mimo_v2_flash": hybrids.mimo_v2,
    "jamba": hybrids.jamba,
    "nemotron_h": hybrids.nemotron_h,
    "granitemoehybrid": hybrids.granitehybrid,
    "mamba2": hybrids.mamba2,
    **dict.fromkeys(("lfm2", "lfm2_moe"), hybrids.lfm2),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), _deepseek2),
    "glm_moe_dsa": _glm_moe_dsa,
    "dbrx": _dbrx,
    "glm": _glm,
    **dict.fromkeys(("t5", "umt5"), towers.t5),
    "gpt_oss": _gpt_oss,
    **dict.fromkeys(("cohere2", "exaone4", "exaone_moe", "olmo3", "afmoe"), every_nth(_PATTERN)),
}
