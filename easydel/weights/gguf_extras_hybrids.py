"""Config keys of GGUF architectures whose layers are of several kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from easydel.weights.gguf_metadata import FULL, SLIDING, Metadata, kv_heads

LINEAR = "linear_attention"


def _in_some_layer(metadata: Metadata, biases: Mapping[str, str]) -> dict[str, Any]:
    """Whether some layer has the tensor of that name, for each config key."""
    names = metadata.tensors
    found = {key: any(name.endswith(f".{bias}") for name in names) for key, bias in biases.items()}
    return found if metadata.known else {}


def _steps(key: str, chosen: list[int], layers: int) -> dict[str, Any]:
    """Returns the first of the `chosen` layers, and the distance to the next, which is always the same."""
    first, *others = chosen or [layers]
    return {f"{key}_offset": first, f"{key}_period": others[0] - first if others else layers + 1}


def _sparse(metadata: Metadata, layers: int) -> list[int]:
    """The layers with experts."""
    return [layer for layer in range(layers) if f"blk.{layer}.ffn_gate_inp.weight" in metadata.tensors]


def mamba2(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    inner, heads = metadata.number("ssm.inner_size"), config["num_heads"]
    return {"head_dim": inner // heads, "expand": inner / config["hidden_size"]}


def jamba(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    kv, sparse = kv_heads(metadata, layers), _sparse(metadata, layers)
    return {
        **_in_some_layer(metadata, {"mamba_conv_bias": "ssm_conv1d.bias", "mamba_proj_bias": "ssm_in.bias"}),
        **_steps("attn_layer", [layer for layer, heads in enumerate(kv) if heads], layers),
        **(_steps("expert_layer", sparse, layers) if sparse else {}),
        "num_key_value_heads": max(kv),
        "mamba_expand": metadata.number("ssm.inner_size") // config["hidden_size"],
    }


def nemotron_h(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """A layer is attention, a feed-forward, dense or of experts, or Mamba 2 if it has neither keys nor a width."""
    layers, heads = config["num_hidden_layers"], config["mamba_num_heads"]
    kv, widths = kv_heads(metadata, layers), metadata.by_layer("feed_forward_length", layers) or [0] * layers
    epsilon, sparse = metadata.get("attention.layer_norm_epsilon"), "moe" if config.get("n_routed_experts") else "mlp"
    kinds = [FULL if count else sparse if width else LINEAR for count, width in zip(kv, widths, strict=True)]
    biases = {"attention_bias": "attn_q.bias", "mlp_bias": "ffn_up.bias", "use_conv_bias": "ssm_conv1d.bias"}
    return {
        **_in_some_layer(metadata, biases | {"mamba_proj_bias": "ssm_in.bias"}),
        "layers_block_type": kinds,
        "num_key_value_heads": max(kv),
        "intermediate_size": max(widths),
        "mamba_head_dim": metadata.number("ssm.inner_size") // heads,
        "layer_norm_epsilon": metadata.get("attention.layer_norm_rms_epsilon", epsilon),
    }


def qwen3_next(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "norm_topk_prob": config.get("norm_topk_prob", True),  # as in every published model
        **qwen3_5(metadata, config),
    }


def qwen3_5(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **_in_some_layer(metadata, {"attention_bias": "attn_q.bias"}),
        "linear_value_head_dim": metadata.number("ssm.inner_size") // config["linear_num_value_heads"],
    }


def falcon_h1(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """All multipliers are in the weights. llama.cpp norms behind the gate, as every published model."""
    biases = {"attention_bias": "attn_q.bias", "mlp_bias": "ffn_up.bias", "projectors_bias": "ssm_out.bias"}
    biases |= {"mamba_conv_bias": "ssm_conv1d.bias", "mamba_proj_bias": "ssm_in.bias"}
    return {
        **_in_some_layer(metadata, biases | {"mamba_rms_norm": "ssm_norm.weight"}),
        "mamba_d_head": config["mamba_d_ssm"] // config["mamba_n_heads"],
    }


def kimi_linear(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """A layer without keys of attention has the delta rule, whose heads are as many as those of attention."""
    layers, rotated = config["num_hidden_layers"], config["qk_rope_head_dim"]
    dense = metadata.get("leading_dense_block_count", 0)
    metadata.raw("attention.key_length")  # of the cache of latents
    return {
        "layer_types": [FULL if count else LINEAR for count in kv_heads(metadata, layers)],
        "mlp_layer_types": ["dense" if layer < dense else "sparse" for layer in range(layers)],
        "num_key_value_heads": config["num_attention_heads"],
        "linear_num_heads": config["num_attention_heads"],
        "q_lora_rank": config.get("q_lora_rank"),
        "qk_nope_head_dim": metadata.number("attention.key_length_mla") - rotated,
        "v_head_dim": metadata.number("attention.value_length_mla"),
    }


def mimo_v2(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Sliding layers have twice the keys, and rope's base of their own."""
    layers, dim = config["num_hidden_layers"], config["head_dim"]
    slides = metadata.by_layer("attention.sliding_window_pattern", layers) or [False] * layers
    full = [count for count, sliding in zip(kv_heads(metadata, layers), slides, strict=True) if not sliding]
    share, theta = metadata.number("rope.dimension_count", dim) / dim, metadata.number("rope.freq_base", 10000.0)
    rope = {"rope_type": "default", "partial_rotary_factor": share}
    sparse = _sparse(metadata, layers)
    return {
        **_in_some_layer(metadata, {"attention_bias": "attn_q.bias"}),
        "layer_types": [SLIDING if sliding else FULL for sliding in slides],
        "mlp_layer_types": ["sparse" if layer in sparse else "dense" for layer in range(layers)],
        "num_key_value_heads": (full or kv_heads(metadata, layers))[0],
        "v_head_dim": metadata.number("attention.value_length", dim),
        "rope_parameters": {
            FULL: {**rope, "rope_theta": theta},
            SLIDING: {**rope, "rope_theta": metadata.number("rope.freq_base_swa", theta)},
        },
    }


def granitehybrid(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """A layer without keys of attention is Mamba 2; "finetuned" says whether attention rotates."""
    layers, inner, heads = config["num_hidden_layers"], metadata.number("ssm.inner_size"), config["mamba_n_heads"]
    kv = kv_heads(metadata, layers)
    biases = {"attention_bias": "attn_q.bias", "mamba_conv_bias": "ssm_conv1d.bias", "mamba_proj_bias": "ssm_in.bias"}
    return {
        **_in_some_layer(metadata, biases),
        "layer_types": [FULL if count else LINEAR for count in kv],
        "num_key_value_heads": max(kv),
        "mamba_d_head": inner // heads,
        "mamba_expand": inner // config["hidden_size"],
        "position_embedding_type": "rope" if metadata.get("rope.scaling.finetuned", True) else "nope",
    }


def lfm2(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """A layer without keys of attention is a short convolution."""
    kv = kv_heads(metadata, config["num_hidden_layers"])
    return {"layer_types": [FULL if heads else "conv" for heads in kv], "num_key_value_heads": max(kv)}
