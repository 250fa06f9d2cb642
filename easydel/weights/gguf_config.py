"""A Hugging Face config from the metadata of a GGUF file."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from easydel.checkpoint import Tensor
from easydel.errors import ConfigError, UnsupportedModelError
from easydel.keys import Keys
from easydel.weights.gguf_architectures import Architecture, find_architecture
from easydel.weights.gguf_rope import rope_scaling

TOKEN_IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}
_GEMMA3_PATTERN = 6  # every sixth layer sees everything; llama.cpp has the number in its code, too
# llama.cpp branches on tensors instead of "use_parallel_residual", which StableLM's converter sets at random.
_INERT = re.compile(
    r"vocab_size|tensor_data_layout|use_parallel_residual|attention\.value_length|expert_used_count"
    r"|rope\.(dimension_count|freq_base|freq_base_swa|scaling\..*)|attention\.sliding_window_pattern"
)
_EFFECTIVE = re.compile(r".*scale|.*softcapping|expert_count|ssm\..*|.*bias|.*clamp.*|.*sections|.*swin.*|.*lora.*")
_MAX_LAYERS = 10_000


def hf_config(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """Returns the model's config.json from before the conversion, as far as it matters.

    Some keys depend on the tensors: whether head and embeddings are tied, which biases exist, Llama 3's rotary scaling.
    Without `tensors` these keys are left out, or are the model type's defaults. Raises UnsupportedModelError for
    settings that are not known here, ConfigError for values that make no sense.
    """
    return _Converter(metadata, tensors).config()


class _Converter:
    def __init__(self, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor] | None):
        self.metadata, self.known, self.tensors = metadata, tensors is not None, tensors or {}
        self.file: Path | None = next((tensor.file for tensor in self.tensors.values()), None)
        self.name, self.architecture = find_architecture(metadata, self.file)
        self.read: set[str] = set()

    def config(self) -> dict[str, Any]:
        arch = self.architecture
        config: dict[str, Any] = {"model_type": arch.model_type, "architectures": [Keys.of(arch.model_type).causal_lm]}
        config |= {theirs: self.get(ours) for ours, theirs in arch.keys.items() if self.get(ours) is not None}
        config |= arch.constants
        self._check_sizes(arch)
        if "num_attention_heads" in config:
            config |= self._heads(config)
        if arch.rotary is not None:
            config |= self._rope(config)
        config |= _EXTRAS.get(self.name, lambda converter, config: {})(self, config)
        config |= self._from_tensors(arch)
        config |= self._tokens()
        config["sliding_window"] = config.get("sliding_window") or None  # 0 in files of models without a window
        self._check_unread()
        return {key: value for key, value in config.items() if value is not None}

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the metadata value of "<architecture>.<key>"; one number for lists that repeat it."""
        self.read.add(key)
        value = self.metadata.get(f"{self.name}.{key}", default)
        if isinstance(value, np.ndarray):
            if value.size == 0 or np.any(value != value[0]):
                raise UnsupportedModelError(f"{self.name}.{key} differs between layers", file=self.file)
            value = value[0].item()
        if isinstance(value, float):
            single = np.float32(value)  # stored as float32; 1e-05 was meant, not 9.999999747378752e-06
            value = float(str(single)) if float(single) == value else value
        return value

    def number(self, key: str, default: Any = None) -> Any:
        value = self.get(key, default)
        if not _is_number(value) or not 0 < value < 2**40:
            raise ConfigError(f"{self.name}.{key} is {str(value)[:100]}, expected a positive number", file=self.file)
        return value

    def _check_sizes(self, arch: Architecture) -> None:
        for key in arch.keys:
            if key in ("block_count", "embedding_length", "attention.head_count", "context_length"):
                self.number(key)
        if self.number("block_count") > _MAX_LAYERS:
            raise ConfigError(f"{self.name}.block_count is {self.get('block_count')}", file=self.file)

    def _heads(self, config: Mapping[str, Any]) -> dict[str, Any]:
        heads, hidden = self.number("attention.head_count"), self.number("embedding_length")
        dim = self.number("attention.key_length", hidden // heads)
        if self.get("attention.value_length", dim) != dim:
            raise UnsupportedModelError("its keys and values have different sizes", file=self.file)
        default = Keys.of(config["model_type"]).defaults.get("head_dim")  # None: hidden / heads
        kept = dim if default is not None or dim * heads != hidden else None
        return {"num_key_value_heads": self.number("attention.head_count_kv", heads), "head_dim": kept}

    def _rope(self, config: dict[str, Any]) -> dict[str, Any]:
        prefix = f"{self.name}.rope.scaling."
        keys = {"factor": "rope.scale_linear"} if self.get("rope.scale_linear") is not None else {}  # its old name
        keys |= {
            key.removeprefix(prefix): key.removeprefix(f"{self.name}.")
            for key in self.metadata
            if key.startswith(prefix)
        }
        settings = {name: self.get(key) for name, key in keys.items()}
        if broken := [name for name, value in settings.items() if isinstance(value, str) != (name == "type")]:
            found = str(settings[broken[0]])[:100]
            raise ConfigError(f"{self.name}.{keys[broken[0]]} is {found}", file=self.file)
        theta = self.number("rope.freq_base", 10000.0)
        head_dim = self.number("attention.key_length", config["hidden_size"] // config["num_attention_heads"])
        dim = self.number("rope.dimension_count", head_dim)
        rope: dict[str, Any] = {"rope_theta": theta}
        if self.architecture.rotary == "part":
            rope["partial_rotary_factor"] = dim / head_dim
        elif dim != head_dim:
            raise UnsupportedModelError(f"rotates {dim} of {head_dim} channels", file=self.file)
        scaling = rope_scaling(
            settings, self.tensors, theta=theta, dim=dim, longest=config["max_position_embeddings"], file=self.file
        )
        return rope | ({"rope_scaling": scaling} if scaling else {})

    def _from_tensors(self, arch: Architecture) -> dict[str, Any]:
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        vocabulary = self.get("vocab_size", len(tokens) if isinstance(tokens, list) else None)
        if not self.known:
            return {} if vocabulary is None else {"vocab_size": vocabulary}
        embedding = self.tensors.get("token_embd.weight")
        found = {key: name in self.tensors for key, name in arch.switches.items()}
        found["tie_word_embeddings"] = "output.weight" not in self.tensors
        return found | {"vocab_size": embedding.shape[0] if embedding is not None and embedding.shape else vocabulary}

    def _tokens(self) -> dict[str, Any]:
        ids = {theirs: self.metadata.get(f"tokenizer.ggml.{ours}") for ours, theirs in TOKEN_IDS.items()}
        end_of_turn = self.metadata.get("tokenizer.ggml.eot_token_id")
        if end_of_turn is not None and end_of_turn != ids["eos_token_id"]:
            ids["eos_token_id"] = [ids["eos_token_id"], end_of_turn] if ids["eos_token_id"] is not None else end_of_turn
        if broken := [key for key, value in ids.items() if value is not None and not _is_token(value)]:
            raise ConfigError(f"{broken[0]} is {str(ids[broken[0]])[:100]}, expected a token's number", file=self.file)
        return ids

    def _check_unread(self) -> None:
        """Refuses unread keys that would change the computation; warns of other unread keys."""
        prefix, causal = f"{self.name}.", self.get("attention.causal", True)
        keys = [key.removeprefix(prefix) for key in self.metadata if key.startswith(prefix)]
        unread = [key for key in keys if key not in self.read and not _INERT.fullmatch(key)]
        unread = [key for key in unread if self.get(key) not in (0, False, "", None)]
        effective = [f"{prefix}{key}={self.get(key)}" for key in unread if _EFFECTIVE.fullmatch(key)]
        effective += [] if causal else [f"{prefix}attention.causal={causal}"]
        if effective:
            raise UnsupportedModelError(f"asks for {', '.join(effective)}, which is not supported", file=self.file)
        if unread:
            warnings.warn(
                f"{self.file or 'GGUF'}: {prefix}{{{', '.join(unread)}}} are not known; ignored", stacklevel=4
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_token(value: object) -> bool:
    return all(type(number) is int and number >= 0 for number in (value if isinstance(value, list) else [value]))


def _gemma_attention(converter: _Converter, config: Mapping[str, Any], largest: int) -> dict[str, Any]:
    """Returns the scale of queries: head_dim ** -0.5, but (hidden / heads) ** -0.5 in the model of `largest` layers.

    The largest model is the 27B one. No metadata holds the scale; llama.cpp, too, goes by the number of layers.
    """
    wide = config["hidden_size"] // config["num_attention_heads"]
    return {"query_pre_attn_scalar": wide if config["num_hidden_layers"] == largest else config["head_dim"]}


def _gemma2(converter: _Converter, config: Mapping[str, Any]) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    types = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)]
    return {"layer_types": types, **_gemma_attention(converter, config, largest=46)}


def _gemma3(converter: _Converter, config: Mapping[str, Any]) -> dict[str, Any]:
    every = _GEMMA3_PATTERN if config.get("sliding_window") else 1
    layers = range(1, config["num_hidden_layers"] + 1)
    return {
        "layer_types": ["sliding_attention" if layer % every else "full_attention" for layer in layers],
        "rope_local_base_freq": converter.number("rope.freq_base_swa", 10000.0),
        **_gemma_attention(converter, config, largest=62),
    }


def _phi3(converter: _Converter, config: Mapping[str, Any]) -> dict[str, Any]:
    original = converter.number("rope.scaling.original_context_length", config["max_position_embeddings"])
    return {"original_max_position_embeddings": original}


def _stablelm(converter: _Converter, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"use_parallel_residual": "blk.0.ffn_norm.weight" not in converter.tensors} if converter.known else {}


_EXTRAS = {"gemma2": _gemma2, "gemma3": _gemma3, "phi3": _phi3, "stablelm": _stablelm}
