"""Tiny models as GGUF files, written as llama.cpp's converters write them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GEMMA = {"head_dim": 16, "sliding_window": 5, "tie_word_embeddings": True, "query_pre_attn_scalar": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "long_factor": [1.5, 2.25, 4.1],
    "short_factor": [1.0, 1.05, 1.3],
    "original_max_position_embeddings": 32,
}


@dataclass(frozen=True)
class Tiny:
    """A model to convert: the architecture's name, the config's class and changes, and what metadata has of it."""

    arch: str
    config_class: str
    changes: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def config(self) -> PretrainedConfig:
        sizes = {} if self.arch == "gpt2" else SIZES
        return getattr(transformers, self.config_class)(**(sizes | self.changes))

    def model(self) -> PreTrainedModel:
        """Weights are multiples of 1/1024, norms and biases included, so that adding one to them loses nothing."""
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(self.config())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randint(-2048, 2048, parameter.shape) / 1024)
        return model


TINY: dict[str, Tiny] = {
    "llama": Tiny("llama", "LlamaConfig", {"rms_norm_eps": 1e-5, "attention_bias": True, "head_dim": 10}),
    "llama-3.2": Tiny("llama", "LlamaConfig", {"rope_parameters": LLAMA3, "tie_word_embeddings": True, "head_dim": 64}),
    "mistral": Tiny("llama", "MistralConfig", {"sliding_window": None, "rope_theta": 1e6}),
    "qwen2": Tiny("qwen2", "Qwen2Config", {"tie_word_embeddings": True, "rope_theta": 1e6}),
    "qwen3": Tiny("qwen3", "Qwen3Config", {"head_dim": 16}),
    "gemma": Tiny("gemma", "GemmaConfig", {"head_dim": 16}),
    "gemma2": Tiny("gemma2", "Gemma2Config", {**GEMMA, "num_hidden_layers": 3, "final_logit_softcapping": 20.0}),
    "gemma3": Tiny(
        "gemma3",
        "Gemma3TextConfig",
        {
            **GEMMA,
            "num_hidden_layers": 7,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    ),
    "phi3": Tiny(
        "phi3",
        "Phi3Config",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32, "sliding_window": 20},
        {
            "rope.dimension_count": 6,
            "rope.scaling.original_context_length": 32,
            "rope.scaling.attn_factor": math.sqrt(1 + math.log(4) / math.log(32)),
        },
    ),
    "starcoder2": Tiny("starcoder2", "Starcoder2Config", {"rope_theta": 100000.0}),
    "stablelm": Tiny(
        "stablelm",
        "StableLmConfig",
        {"use_qkv_bias": True, "partial_rotary_factor": 0.5},
        {"rope.dimension_count": 4, "use_parallel_residual": True},
    ),
    "stablelm-parallel": Tiny(
        "stablelm",
        "StableLmConfig",
        {"use_parallel_residual": True, "partial_rotary_factor": 0.5},
        {"rope.dimension_count": 4},
    ),
    "gpt2": Tiny(
        "gpt2",
        "GPT2Config",
        {"vocab_size": 97, "n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": 128, "n_inner": 192}
        | {"bos_token_id": 1, "eos_token_id": 2},
    ),
}


def no_tokenizer(writer: gguf.GGUFWriter, tokens: int) -> None:
    writer.add_tokenizer_model("none")  # llama.cpp wants to be told
    writer.add_token_list([f"t{number}" for number in range(tokens)])


def letters(writer: gguf.GGUFWriter, tokens: int) -> None:
    """A byte-level tokenizer of lower-case letters, two merges and a chat template."""
    control = ["<pad>", "<s>", "</s>"]
    known = [*control, *"abcdefghijklmnopqrstuvwxyz", "\u0120", "he", "\u0120he"]
    known += [f"<unused{number}>" for number in range(tokens - len(known))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(known)
    writer.add_token_types([3 if token.startswith("<") else 1 for token in known])
    writer.add_token_merges(["h e", "\u0120 he"])
    writer.add_add_bos_token(True)
    writer.add_chat_template([
        {"name": "default", "template": "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"},
        {"name": "tool_use", "template": "{{ tools | length }}"},
    ])  # fmt: skip


def write_gguf(
    file: Path,
    tiny: Tiny,
    model: PreTrainedModel | None = None,
    change: Callable[[str, np.ndarray], Any] | None = None,
    tokenizer: Callable[[gguf.GGUFWriter, int], None] = no_tokenizer,
    split: int = 0,
) -> Path:
    """`change(name, array)` may replace a tensor by (raw bytes, block type). `model` may be larger than tiny.

    `split` is the number of tensors in each part, if there are to be several; the first one is returned.
    """
    model = model or tiny.model()
    writer = gguf.GGUFWriter(file, tiny.arch, split_max_tensors=split)
    writer.add_name("tiny")
    for key, value in {**_sizes(model.config), **tiny.metadata}.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](f"{tiny.arch}.{key}", value)
    tokenizer(writer, model.config.vocab_size)
    for role in ("bos", "eos", "pad"):
        if (number := getattr(model.config, f"{role}_token_id")) is not None:
            getattr(writer, f"add_{role}_token_id")(number)
    for name, array in _tensors(tiny, model):
        array, kind = (change and change(name, array)) or (array, None)
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(file.parent.glob(f"{file.stem}*.gguf"))


def _sizes(config: PretrainedConfig) -> dict[str, Any]:
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    values = {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None),
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None),
        "attention.key_length": getattr(config, "head_dim", None),
        "attention.value_length": getattr(config, "head_dim", None),
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", None),
        "attention.layer_norm_epsilon": next(
            (
                getattr(config, key)
                for key in ("norm_epsilon", "layer_norm_eps", "layer_norm_epsilon")
                if hasattr(config, key)
            ),
            None,
        ),
        "attention.sliding_window": getattr(config, "sliding_window", None),
        "attn_logit_softcapping": getattr(config, "attn_logit_softcapping", None),
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None),
        "rope.freq_base": rope.get("rope_theta"),
        "vocab_size": config.vocab_size,
    }
    return {key: value for key, value in values.items() if value is not None}


def _tensors(tiny: Tiny, model: PreTrainedModel) -> Iterator[tuple[str, np.ndarray]]:
    config = model.config
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == tiny.arch)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = parameter.numpy()
        if tiny.arch == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            array = (
                array.reshape(heads, 2, len(array) // heads // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
            )
        if tiny.arch.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1
        if tiny.arch == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            array = np.ascontiguousarray(array.T)
        mapped = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert mapped is not None, name
        yield mapped, array
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "llama3":
        yield "rope_freqs.weight", llama3_factors(rope, config.head_dim)
    if rope.get("rope_type") == "longrope":
        yield "rope_factors_long.weight", np.array(rope["long_factor"], np.float32)
        yield "rope_factors_short.weight", np.array(rope["short_factor"], np.float32)


def llama3_factors(rope: dict[str, Any], dim: int) -> np.ndarray:
    """Computed like llama.cpp's converter does, in float32."""
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    length = rope["original_max_position_embeddings"]
    frequencies = 1.0 / (rope["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    factors: list[Any] = []
    for frequency in frequencies:
        wavelength = 2 * math.pi / frequency
        if wavelength < length / high:
            factors.append(1)
        elif wavelength > length / low:
            factors.append(factor)
        else:
            smooth = (length / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(factors, dtype=torch.float32).numpy()
