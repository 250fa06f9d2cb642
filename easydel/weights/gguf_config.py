"""A Hugging Face config from the metadata of a GGUF file."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

from easydel.checkpoint import Tensor
from easydel.errors import ConfigError, UnsupportedModelError
from easydel.keys import Keys
from easydel.weights.gguf_architecture import Architecture
from easydel.weights.gguf_architectures import find_architecture
from easydel.weights.gguf_extras import EXTRAS, with_mscale
from easydel.weights.gguf_metadata import Metadata
from easydel.weights.gguf_rope import rope_scaling

TOKEN_IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}
AHEAD = "nextn_predict_layers"  # layers after the others that predict tokens further ahead: not loaded
# llama.cpp branches on tensors instead of "use_parallel_residual", which StableLM's converter sets at random.
_INERT = re.compile(
    r"vocab_size|tensor_data_layout|use_parallel_residual|attention\.value_length|expert_used_count|expert_gating_func"
    r"|rope\.(dimension_count|freq_base|freq_base_swa|scaling\..*)|attention\.sliding_window_pattern"
)
_EFFECTIVE = re.compile(
    r".*scale|.*softcapping|.*expert.*count|ssm\..*|.*bias|.*clamp.*|.*sections|.*swin.*|.*lora.*|shortconv\..*"
)
_MAX_LAYERS = 10_000
_NULLS = ("q_lora_rank",)  # null is another value than none


def hf_config(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """Returns the model's config.json from before the conversion, as far as it matters.

    Some keys depend on the tensors: whether head and embeddings are tied, which biases exist, Llama 3's rotary scaling.
    Without `tensors` these keys are left out, or are the model type's defaults. Raises UnsupportedModelError for
    settings that are not known here, ConfigError for values that make no sense.
    """
    return _Converter(metadata, tensors).config()


class _Converter:
    def __init__(self, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor] | None):
        file = next((tensor.file for tensor in (tensors or {}).values()), None)
        self.name, self.architecture = find_architecture(metadata, tensors or {}, file)
        self.metadata = Metadata(metadata, tensors, self.name)
        self.file = self.metadata.file

    def config(self) -> dict[str, Any]:
        arch, get = self.architecture, self.metadata.get
        config: dict[str, Any] = {"model_type": arch.model_type, "architectures": [Keys.of(arch.model_type).causal_lm]}
        config |= {theirs: get(ours) for ours, theirs in arch.keys.items() if get(ours) is not None}
        config |= arch.constants
        self._check_sizes(arch)
        if "num_hidden_layers" in config:
            config["num_hidden_layers"] -= get(AHEAD, 0)
        if "num_key_value_heads" in arch.keys.values():
            config |= self._heads(config)
        if arch.rotary is not None:
            config |= self._rope(config)
        if arch.model_type in EXTRAS:
            config |= EXTRAS[arch.model_type](self.metadata, config)
        config |= self._from_tensors(arch)
        config |= self._tokens()
        config["sliding_window"] = config.get("sliding_window") or None  # 0 in files of models without a window
        self._check_unread()
        return {key: value for key, value in config.items() if value is not None or key in _NULLS}

    def _check_sizes(self, arch: Architecture) -> None:
        for key in arch.keys:
            if key in ("block_count", "embedding_length", "attention.head_count", "context_length"):
                self.metadata.number(key)
        if self.metadata.number("block_count") > _MAX_LAYERS:
            raise ConfigError(f"{self.name}.block_count is {self.metadata.get('block_count')}", file=self.file)

    def _heads(self, config: Mapping[str, Any]) -> dict[str, Any]:
        heads, hidden = self.metadata.number("attention.head_count"), self.metadata.number("embedding_length")
        dim = self.metadata.number("attention.key_length", hidden // heads)
        if self.metadata.get("attention.value_length", dim) != dim:
            raise UnsupportedModelError("its keys and values have different sizes", file=self.file)
        default = Keys.of(config["model_type"]).defaults.get("head_dim")  # None: hidden / heads
        kept = dim if default is not None or dim * heads != hidden else None
        return {"num_key_value_heads": self.metadata.number("attention.head_count_kv", heads), "head_dim": kept}

    def _rope(self, config: dict[str, Any]) -> dict[str, Any]:
        prefix = f"{self.name}.rope.scaling."
        old = self.metadata.get("rope.scale_linear") is not None
        keys = {"factor": "rope.scale_linear"} if old else {}
        keys |= {
            key.removeprefix(prefix): key.removeprefix(f"{self.name}.")
            for key in self.metadata.values
            if key.startswith(prefix)
        }
        settings = {name: self.metadata.get(key) for name, key in keys.items()}
        if broken := [name for name, value in settings.items() if isinstance(value, str) != (name == "type")]:
            found = str(settings[broken[0]])[:100]
            raise ConfigError(f"{self.name}.{keys[broken[0]]} is {found}", file=self.file)
        theta = self.metadata.number("rope.freq_base", 10000.0)
        head_dim = self.metadata.number("attention.key_length", config["hidden_size"] // config["num_attention_heads"])
        dim = self.metadata.number("rope.dimension_count", head_dim)
        rope: dict[str, Any] = {"rope_theta": theta}
        if self.architecture.rotary == "part":
            rope["partial_rotary_factor"] = dim / head_dim
        elif dim != head_dim and self.architecture.rotary == "whole":
            raise UnsupportedModelError(f"rotates {dim} of {head_dim} channels", file=self.file)
        unit = self.architecture.mscale
        multiplier = None if unit is None else settings.pop("yarn_log_multiplier", None)
        longest, tensors = config["max_position_embeddings"], self.metadata.tensors
        scaling = rope_scaling(settings, tensors, theta=theta, dim=dim, longest=longest, file=self.file)
        return rope | ({"rope_scaling": with_mscale(scaling, multiplier, unit)} if scaling else {})

    def _from_tensors(self, arch: Architecture) -> dict[str, Any]:
        tokens = self.metadata.values.get("tokenizer.ggml.tokens")
        vocabulary = self.metadata.get("vocab_size", len(tokens) if isinstance(tokens, list) else None)
        if not self.metadata.known:
            return {} if vocabulary is None else {"vocab_size": vocabulary}
        embedding = self.metadata.tensors.get("token_embd.weight")
        found = {key: name in self.metadata.tensors for key, name in arch.switches.items()}
        found["tie_word_embeddings"] = "output.weight" not in self.metadata.tensors
        return found | {"vocab_size": embedding.shape[0] if embedding is not None and embedding.shape else vocabulary}

    def _tokens(self) -> dict[str, Any]:
        ids = {theirs: self.metadata.values.get(f"tokenizer.ggml.{ours}") for ours, theirs in TOKEN_IDS.items()}
        end_of_turn = self.metadata.values.get("tokenizer.ggml.eot_token_id")
        if end_of_turn is not None and end_of_turn != ids["eos_token_id"]:
            ids["eos_token_id"] = [ids["eos_token_id"], end_of_turn] if ids["eos_token_id"] is not None else end_of_turn
        if broken := [key for key, value in ids.items() if value is not None and not _is_token(value)]:
            raise ConfigError(f"{broken[0]} is {str(ids[broken[0]])[:100]}, expected a token's number", file=self.file)
        return ids

    def _check_unread(self) -> None:
        """Refuses unread keys that would change the computation; warns of other unread keys."""
        prefix, causal = f"{self.name}.", self.metadata.get("attention.causal", True)
        keys = [key.removeprefix(prefix) for key in self.metadata.values if key.startswith(prefix)]
        unread = [key for key in keys if key not in self.metadata.read and not _INERT.fullmatch(key)]
        unread = [key for key in unread if key not in self.architecture.ignored]
        unread = [key for key in unread if self.metadata.get(key) not in (0, False, "", None)]
        effective = [f"{prefix}{key}={self.metadata.get(key)}" for key in unread if _EFFECTIVE.fullmatch(key)]
        effective += [] if causal else [f"{prefix}attention.causal={causal}"]
        if effective:
            raise UnsupportedModelError(f"asks for {', '.join(effective)}, which is not supported", file=self.file)
        if unread:
            warnings.warn(
                f"{self.file or 'GGUF'}: {prefix}{{{', '.join(unread)}}} are not known; ignored", stacklevel=4
            )


def _is_token(value: object) -> bool:
    return all(type(number) is int and number >= 0 for number in (value if isinstance(value, list) else [value]))
