"""Hugging Face checkpoints as GGUF files, changed as llama.cpp's converters change them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf_files import llama3_factors
from safetensors.numpy import load_file
from transformers.integrations.heterogeneity.configuration_utils import AmbiguousGlobalPerLayerAttributeError

PERMUTED = ("llama", "mistral3", "olmo", "granite", "granitemoe", "granitehybrid", "smollm3", "arcee")
MAMBA2 = ("mamba2", "granitehybrid", "nemotron_h", "nemotron_h_moe", "falcon-h1")
RAISED = ("nemotron", "qwen3next", "qwen35", "qwen35moe")
Arrays = Iterator[tuple[str, np.ndarray]]
# config key -> metadata key, as the converters' base class writes them, and those of single models
KEYS = {
    "context_length": ("max_position_embeddings", "n_positions", "max_seq_len"),
    "block_count": ("num_hidden_layers", "n_layer", "n_layers"),
    "embedding_length": ("hidden_size", "n_embd", "d_model"),
    "feed_forward_length": ("intermediate_size", "n_inner", "ffn_hidden_size"),
    "attention.head_count": ("num_attention_heads", "n_head", "n_heads"),
    "attention.head_count_kv": ("num_kv_heads", "num_key_value_heads"),
    "attention.key_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon"),
    "attention.sliding_window": ("sliding_window",),
    "attention.scale": ("attention_multiplier",),
    "attention.clamp_kqv": ("clip_qkv",),
    "attention.q_lora_rank": ("q_lora_rank",),
    "attention.kv_lora_rank": ("kv_lora_rank",),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "logit_scale": ("logits_scaling", "logit_scale"),
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    "expert_used_count": ("num_experts_per_tok", "moe_k", "moe_topk"),
    "expert_shared_count": ("n_shared_experts", "moe_num_shared_experts", "num_shared_experts"),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size", "shared_intermediate_size"),
    "expert_weights_scale": ("routed_scaling_factor", "route_scale"),
    "expert_weights_norm": ("norm_topk_prob", "route_norm"),
    "expert_group_count": ("n_group", "num_expert_group"),
    "expert_group_used_count": ("topk_group",),
    "leading_dense_block_count": ("first_k_dense_replace", "moe_layer_start_index", "num_dense_layers"),
    "interleave_moe_layer_step": ("moe_layer_interval", "interleave_moe_layer_step"),
    "shortconv.l_cache": ("conv_L_cache",),
    "ssm.conv_kernel": ("conv_kernel", "mamba_d_conv", "linear_conv_kernel_dim"),
    "ssm.state_size": ("state_size", "mamba_d_state", "ssm_state_size", "linear_key_head_dim"),
    "ssm.group_count": ("n_groups", "mamba_n_groups", "linear_num_key_heads"),
    "attention.shared_kv_layers": ("num_kv_shared_layers",),
    "embedding_length_per_layer_input": ("hidden_size_per_layer_input",),
    "altup.active_idx": ("altup_active_idx",),
    "altup.num_inputs": ("altup_num_inputs",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "use_parallel_residual": ("use_parallel_residual",),
}


def convert(
    directory: Path, arch: str, config: Any, file: Path, metadata: Mapping[str, Any], coded: str | None = None
) -> Path:
    """Writes the model in `directory`; `metadata` has further keys, without "<arch>.", None for those to leave out.

    Tensors whose names match `coded` are written in blocks of 8 bits.
    """
    writer = gguf.GGUFWriter(file, arch)
    for key, value in {**described(config), **metadata}.items():
        if isinstance(value, list):
            writer.add_array(f"{arch}.{key}", value)
        elif value is not None:
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            add[type(value)](f"{arch}.{key}", value)
    writer.add_token_list([f"t{number}" for number in range(config.vocab_size)])
    for role in ("bos", "eos", "pad"):
        if (number := getattr(config, f"{role}_token_id")) is not None:
            getattr(writer, f"add_{role}_token_id")(number)
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    arrays = load_file(directory / "model.safetensors")
    if config.tie_word_embeddings and not config.is_encoder_decoder:  # T5 calls every head tied
        arrays.pop("lm_head.weight", None)
    for number in ("alpha_p", "alpha_n", "beta", "eps") if arch == "apertus" else ():
        found = [arrays.pop(f"model.layers.{i}.mlp.act_fn.{number}") for i in range(config.num_hidden_layers)]
        writer.add_array(f"xielu.{number}", [array.item() for array in found])
    for name, array in changed(arch, config, stacked(together(arch, config, folded(arch, config, arrays)))):
        mapped = names.get_name(name, try_suffixes=(".weight", ".bias"))
        array, kind = np.ascontiguousarray(array), None
        if coded is not None and re.search(coded, mapped or name):
            kind = gguf.GGMLQuantizationType.Q8_0
            array = gguf.quantize(array, kind)
        writer.add_tensor(mapped or name, array, raw_dtype=kind)
    for name, array in tables(arch, config, metadata).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def tables(arch: str, config: Any, metadata: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Factors by which rotary frequencies are slowed."""
    rope = getattr(config, "rope_parameters", None) or {}
    whole = rope.get("full_attention", rope)
    if arch == "gemma4":
        half = metadata["attention.key_length"] // 2
        rotated = int(half * whole.get("partial_rotary_factor", 1))
        return {"rope_freqs.weight": np.array([1.0] * rotated + [1e30] * (half - rotated), np.float32)}
    if whole.get("rope_type") == "llama3":
        return {"rope_freqs.weight": llama3_factors(whole, config.head_dim)}
    return {}


def described(config: Any) -> dict[str, Any]:
    """The metadata of the sizes in a config."""
    found = {
        key: next((value for n in names if (value := stated(config, n)) is not None), None)
        for key, names in KEYS.items()
    }
    rope = getattr(config, "rope_parameters", None) or {}
    found["rope.freq_base_swa"] = rope.get("sliding_attention", {}).get("rope_theta")
    rope = rope.get("full_attention", rope)
    found["rope.freq_base"] = rope.get("rope_theta")
    if (share := rope.get("partial_rotary_factor")) is not None:
        dim = found["attention.key_length"] or config.hidden_size // config.num_attention_heads
        found["rope.dimension_count"] = int(share * dim)
    return {key: float(value) if key.endswith("scale") and value else value for key, value in found.items()}


def stated(config: Any, name: str) -> Any:
    """A value of the config, or None; one that may differ by layer is as the whole config has it."""
    try:
        return getattr(config, name, None)
    except AmbiguousGlobalPerLayerAttributeError:
        return config.to_dict().get(name)


def stacked(arrays: dict[str, np.ndarray]) -> Arrays:
    """Tensors, with the experts of a layer as one."""
    experts: dict[str, list[np.ndarray]] = {}
    for name in sorted(arrays, key=lambda name: [int(n) if n.isdigit() else 0 for n in name.split(".")]):
        merged = re.sub(r"(experts|altup_projections|altup_unembed_projections)\.\d+\.", r"\1.", name)
        if merged == name:
            yield name, arrays[name]
        else:
            experts.setdefault(merged, []).append(arrays[name])
    yield from ((name, np.stack(parts)) for name, parts in experts.items())


def changed(arch: str, config: Any, arrays: Arrays) -> Arrays:
    for name, array in arrays:
        layer = next((part for part in name.split(".") if part.isdigit()), "")
        stem = name.rpartition(".")[0].rpartition(".")[2]
        if arch in PERMUTED and stem in ("q_proj", "k_proj"):
            heads = config.num_attention_heads if stem == "q_proj" else config.num_key_value_heads
            yield name, array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        elif arch in RAISED and name.endswith("norm.weight") and "linear_attn" not in name:
            yield name, array + 1
        elif "query_key_value" in name and arch in ("bloom", "gptneox"):
            heads = getattr(config, "n_head", None) or config.num_attention_heads
            yield own_name(name), array.reshape(heads, 3, -1, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)
        elif "query_key_value" in name:  # falcon
            kv, dim = (
                config.num_kv_heads if config.new_decoder_architecture else 1,
                config.hidden_size // config.num_attention_heads,
            )
            groups = array.reshape(kv, config.num_attention_heads // kv + 2, dim, -1)
            parts = [groups[:, :-2], groups[:, -2:-1], groups[:, -1:]]
            yield name, np.concatenate([part.reshape(-1, array.shape[1]) for part in parts])
        elif "in_proj_qkvz" in name:
            groups, key = config.linear_num_key_heads, config.linear_key_head_dim
            value = config.linear_num_value_heads // groups * config.linear_value_head_dim
            parts = np.split(array.reshape(groups, -1, array.shape[1]), np.cumsum([key, key, value]), axis=1)
            *qkv, gate = (part.reshape(-1, array.shape[1]) for part in parts)
            yield f"blk.{layer}.attn_qkv.weight", np.concatenate(qkv)
            yield f"blk.{layer}.attn_gate.weight", gate
        elif arch.startswith("qwen35") and "linear_attn" in name and "norm" not in name:
            yield from in_turns(config, name, array, layer)
        elif arch == "gemma4" and (place := OF_GEMMA4.get(name.partition(f"layers.{layer}.")[2])):
            yield f"blk.{layer}.{place}", array
        elif "experts.mlp." in name:  # dbrx
            matrices = array.reshape(config.ffn_config.moe_num_experts, -1, array.shape[1])
            part = {"w1": "gate", "v1": "up", "w2": "down"}[name[-2:]]
            yield f"blk.{layer}.ffn_{part}_exps.weight", matrices.swapaxes(1, 2) if part == "down" else matrices
        elif arch == "llama4" and name.endswith("gate_up_proj"):
            for part, half in zip(("gate", "up"), np.split(array, 2, axis=2), strict=True):
                yield f"blk.{layer}.ffn_{part}_exps.weight", half.swapaxes(1, 2)
        elif re.search(r"block_sparse_moe\.(gate|up|down)_proj", name):  # dense, in files of transformers
            yield name.replace("block_sparse_moe", "mlp"), array
        elif arch == "kimi-linear" and name.endswith("A_log"):
            yield f"blk.{layer}.ssm_a", -np.exp(array)
        elif re.search(r"[qkv]_conv1d", name):
            yield name, array.reshape(1, array.shape[0], 1, -1)
        elif "sub_norm" in name:
            yield f"blk.{layer}.{'attn' if 'attn' in stem else 'ffn'}_sub_norm.weight", array
        elif "mixer.experts" in name:
            yield f"blk.{layer}.ffn_{'up' if 'up_proj' in name else 'down'}_exps.weight", array
        elif stem == "pre_ff_layernorm" and arch == "falcon-h1":
            yield f"blk.{layer}.ffn_norm.weight", array
        elif name.endswith("A_log"):
            values = -np.exp(array)
            yield f"blk.{layer}.ssm_a", values[:, None] if arch in MAMBA2 else values
        elif name.endswith(("mixer.D", "mamba.D")):
            yield f"blk.{layer}.ssm_d", array[:, None] if arch in MAMBA2 else array
        elif name.endswith("dt_bias"):
            yield f"blk.{layer}.ssm_dt.bias", array
        elif name.endswith(("mixer.norm.weight", "mamba.norm.weight")):
            yield name, array.reshape(getattr(config, "n_groups", None) or config.mamba_n_groups, -1)
        elif name.endswith(("conv1d.weight", "conv.conv.weight")):
            yield name, array[:, 0]
        elif name.endswith("input_linear.weight"):
            kind = "_exps" if "shared_mlp" not in name else "_shexp" if config.num_local_experts else ""
            for part, half in zip(("gate", "up"), np.split(array, 2, axis=-2), strict=True):
                yield f"blk.{layer}.ffn_{part}{kind}.weight", half
        elif name.endswith("shared_mlp.output_linear.weight") and not config.num_local_experts:
            yield f"blk.{layer}.ffn_down.weight", array
        elif "gate_up_proj" in name and arch == "gpt-oss":
            leaf = "bias" if name.endswith("bias") else "weight"
            array = array if leaf == "bias" else array.swapaxes(1, 2)
            yield f"blk.{layer}.ffn_gate_exps.{leaf}", array[:, ::2]
            yield f"blk.{layer}.ffn_up_exps.{leaf}", array[:, 1::2]
        elif name.endswith("experts.down_proj"):
            yield f"blk.{layer}.ffn_down_exps.weight", array.swapaxes(1, 2)
        elif name.endswith("down_proj_bias"):
            yield f"blk.{layer}.ffn_down_exps.bias", array
        elif name.endswith("correct_output_scale"):
            yield f"blk.{layer}.altup_correct_scale.weight", array
        elif name.endswith(("sinks", "sink_bias")):
            yield f"blk.{layer}.attn_sinks.weight", array
        elif name.endswith(("correction_bias", "expert_bias")):
            yield f"blk.{layer}.exp_probs_b.bias", array.reshape(-1)
        elif name.endswith("kv_b_proj.weight") and arch != "minicpm3":
            both = array.reshape(config.num_attention_heads, -1, array.shape[1])
            nope = config.qk_nope_head_dim
            yield f"blk.{layer}.attn_k_b.weight", both[:, :nope].swapaxes(1, 2)
            yield f"blk.{layer}.attn_v_b.weight", both[:, nope:]
        elif re.search(r"feed_forward\.experts\.w\d", name):
            yield name.removeprefix("model."), array
        elif re.search(r"shared_expert_gate", name):
            yield name, array[0]
        else:
            yield own_name(name) if arch == "bloom" else name, array


OF_GEMMA4 = {
    "layer_scalar": "layer_output_scale.weight",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight",
}


def in_turns(config: Any, name: str, array: np.ndarray, layer: str) -> Arrays:
    """Qwen3.5's heads of values: the first one of each key, the second one of each, ..."""
    keys, dim = config.linear_num_key_heads, config.linear_value_head_dim
    each, before = config.linear_num_value_heads // keys, 2 * keys * config.linear_key_head_dim
    part = name.partition("linear_attn.")[2].removesuffix(".weight")
    if part == "out_proj":
        yield name, array.reshape(-1, keys, each, dim).swapaxes(1, 2).reshape(array.shape)
        return
    if part == "conv1d":
        array = array[:, 0]
    skipped = before if part in ("in_proj_qkv", "conv1d") else 0
    size = dim if part in ("in_proj_qkv", "conv1d", "in_proj_z") else 1
    others, heads = array[:skipped], array[skipped:]
    turned = heads.reshape(keys, each, size, *heads.shape[1:]).swapaxes(0, 1).reshape(heads.shape)
    places = {"A_log": f"blk.{layer}.ssm_a", "dt_bias": f"blk.{layer}.ssm_dt.bias"}
    array = np.concatenate([others, turned])
    yield places.get(part, name), -np.exp(array) if part == "A_log" else array


def folded(arch: str, config: Any, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Falcon-H1's weights, times the multipliers of its config."""
    if arch != "falcon-h1":
        return arrays
    inner, group = config.mamba_d_ssm, config.mamba_n_groups * config.mamba_d_state
    parts = [inner, inner, group, group, config.mamba_n_heads]
    factors = {
        "gate_proj": config.mlp_multipliers[0],
        "down_proj": config.mlp_multipliers[1],
        "q_proj": config.attention_in_multiplier,
        "k_proj": config.attention_in_multiplier * config.key_multiplier,
        "v_proj": config.attention_in_multiplier,
        "o_proj": config.attention_out_multiplier,
        "out_proj": config.ssm_out_multiplier,
        "in_proj": config.ssm_in_multiplier * np.repeat(config.ssm_multipliers, parts)[:, None].astype(np.float32),
        "lm_head": config.lm_head_multiplier,
        "embed_tokens": config.embedding_multiplier,
    }
    return {name: array * factors.get(name.split(".")[-2], 1) for name, array in arrays.items()}


def together(arch: str, config: Any, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """GLM-4 in its authors' files, which have queries, keys and values in one tensor."""
    if arch != "chatglm" or not config.attention_bias:
        return arrays
    for layer in range(config.num_hidden_layers):
        for leaf in ("weight", "bias"):
            parts = [arrays.pop(f"model.layers.{layer}.self_attn.{part}_proj.{leaf}") for part in "qkv"]
            arrays[f"blk.{layer}.attn_qkv.{leaf}"] = np.concatenate(parts)
    return arrays


def own_name(name: str) -> str:
    return name.removeprefix("transformer.")
