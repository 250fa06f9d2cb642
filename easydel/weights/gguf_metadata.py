"""The metadata of a GGUF file, read key by key: what was not read can be told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from easydel.checkpoint import Tensor
from easydel.errors import ConfigError, UnsupportedModelError


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

    def number(self, key: str, default: Any = None) -> Any:
        """Returns a positive number. Raises ConfigError for anything else."""
        value = self.get(key, default)
        if not _is_number(value) or not 0 < value < 2**40:
            raise ConfigError(f"{self.name}.{key} is {str(value)[:100]}, expected a positive number", file=self.file)
        return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
