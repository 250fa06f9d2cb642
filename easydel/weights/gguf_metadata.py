"""The metadata of a GGUF file, read key by key: what was not read can be told."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from easydel.checkpoint import Tensor
from easydel.errors import ConfigError, UnsupportedModelError

FULL, SLIDING = "full_attention", "sliding_attention"


class Metadata:
    """Values below "<architecture>.", and the file's tensors; `known` is False if the tensors are not."""

    def __init__(self, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor] | None, name: str):
        self.values, self.known, self.tensors, self.name = metadata, tensors is not None, tensors or {}, name
        self.file: Path | None = next((tensor.file for tensor in self.tensors.values()), None)
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the value of "<architecture>.<key>"; one number for lists that repeat it."""
        value = self.raw(key, default)
        if isinstance(value, np.ndarray):
            if value.size == 0 or np.any(value != value[0]):
                raise UnsupportedModelError(f"{self.name}.{key} differs between layers", file=self.file)
            value = value[0].item()
        if isinstance(value, float):
            single = np.float32(value)  # stored as float32; 1e-05 was meant, not 9.999999747378752e-06
            value = float(str(single)) if float(single) == value else value
        return value

    def raw(self, key: str, default: Any = None) -> Any:
        """Returns the value as it is: a list has a number for each layer."""
        self.read.add(key)
        return self.values.get(f"{self.name}.{key}", default)

    def by_layer(self, key: str, layers: int) -> list[Any] | None:
        """Returns a list with a value for each layer, if the file has one."""
        value = self.raw(key)
        if not isinstance(value, np.ndarray):
            return None
        if len(value) < layers:
            raise ConfigError(f"{self.name}.{key} has {len(value)} values for {layers} layers", file=self.file)
        return value[:layers].tolist()

    def rows(self, keys: Mapping[str, str]) -> dict[str, int]:
        """Returns the number of rows of the tensors that the file has, under the keys of the config."""
        return {key: self.tensors[name].shape[0] for key, name in keys.items() if name in self.tensors}

    def number(self, key: str, default: Any = None) -> Any:
        """Returns a positive number. Raises ConfigError for anything else."""
        value = self.get(key, default)
        if not _is_number(value) or not 0 < value < 2**40:
            raise ConfigError(f"{self.name}.{key} is {str(value)[:100]}, expected a positive number", file=self.file)
        return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


Extra = Callable[[Metadata, Mapping[str, Any]], dict[str, Any]]


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


def kv_heads(metadata: Metadata, layers: int) -> list[int]:
    """The number of heads with keys in each layer: 0 in those without attention."""
    single = [metadata.raw("attention.head_count_kv")] * layers
    return metadata.by_layer("attention.head_count_kv", layers) or [int(count or 0) for count in single]
