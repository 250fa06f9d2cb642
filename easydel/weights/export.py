"""Parameters back to checkpoint tensors: the same table read in the other direction, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np

from easydel.errors import ShardingError
from easydel.weights.expressions import Expression, assemble, source_names
from easydel.weights.names import Names

# name, shape, dtype, values
Entry = tuple[str, tuple[int, ...], np.dtype, Callable[[], np.ndarray]]


@dataclass
class Parameters:
    """Per-layer parameters as numpy arrays, fetched from their devices when asked for; the last one is kept.

    `leaves` by path, and `layer_paths` from each to the per-layer paths that it holds. Where `dequantized`, int8
    leaves come multiplied with their scales, as `dtype`.
    """

    leaves: Mapping[str, Any]
    layer_paths: Mapping[str, list[str]]
    dtype: np.dtype | None = None
    dequantized: bool = False
    _homes: dict[str, tuple[str, int | None]] = field(init=False)
    _kept: tuple[str, np.ndarray] | None = field(default=None, init=False)
    _lock: Lock = field(default_factory=Lock, init=False)

    def __post_init__(self) -> None:
        stacked = {path: parts != [path] for path, parts in self.layer_paths.items()}
        self._homes = {
            part: (path, row if stacked[path] else None)
            for path, parts in self.layer_paths.items()
            for row, part in enumerate(parts)
            if not (self.dequantized and path.endswith("_scale") and path.removesuffix("_scale") in self.leaves)
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            part: self.leaves[path].shape if row is None else self.leaves[path].shape[1:]
            for part, (path, row) in self._homes.items()
        }

    def dtype_of(self, part: str) -> np.dtype:
        path, _ = self._homes[part]
        stored = np.dtype(self.leaves[path].dtype)
        quantized = stored == np.int8
        if self.dequantized:
            return self.dtype if self.dtype is not None else np.dtype(np.float32) if quantized else stored
        return stored

    def __getitem__(self, part: str) -> np.ndarray:
        path, row = self._homes[part]
        with self._lock:  # several threads may want layers of one stack: it is fetched once
            if self._kept is None or self._kept[0] != path:
                self._kept = (path, self._fetch(path))
            values = self._kept[1]
        return values if row is None else values[row]

    def _fetch(self, path: str) -> np.ndarray:
        array = self.leaves[path]
        if not getattr(array, "is_fully_addressable", True):  # numpy arrays can be saved, too
            raise ShardingError("is spread over several processes, which cannot be saved yet", tensor=path)
        values = np.asarray(array)
        if not self.dequantized:
            return values
        if values.dtype == np.int8:
            values = values * np.asarray(self.leaves[f"{path}_scale"])[..., None]
        return values.astype(self.dtype_of(self.layer_paths[path][0]), copy=False)


def entries(parameters: Parameters, names: Names) -> list[Entry]:
    """What to write: every tensor of the checkpoint that `names` describes, in the order of the parameters."""
    shapes = parameters.shapes()
    expressions = {path: names.expression(path, shapes) for path in shapes}
    found: list[Entry] = []
    for name, paths in source_names(expressions).items():
        shape = expressions[paths[0]].shapes(shapes[paths[0]])[name]
        found.append((name, shape, parameters.dtype_of(paths[0]), _values(name, shape, paths, parameters, expressions)))
    return found


def _values(
    name: str, shape: tuple[int, ...], paths: list[str], parameters: Parameters, expressions: Mapping[str, Expression]
) -> Callable[[], np.ndarray]:
    def values() -> np.ndarray:
        pieces = [piece for path in paths for piece in expressions[path].pieces(parameters[path]) if piece[0] == name]
        return assemble(shape, pieces)

    return values
