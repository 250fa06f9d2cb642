"""Parameters back to checkpoint tensors: the same table in the other direction, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from threading import Lock
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from easydel.forms import BESIDE, Form, floats_of
from easydel.inputs import donations_explained
from easydel.processes import put_together
from easydel.weights.expressions import assemble, source_names
from easydel.weights.names import Names

# name, shape, dtype, values
Entry = tuple[str, tuple[int, ...], np.dtype, Callable[[], np.ndarray]]


@dataclass
class Parameters:
    """Per-layer parameters as numpy arrays, fetched from their devices on request; the last one is kept.

    `leaves` are by path, and `layer_paths` maps each path to the per-layer paths that it holds. If `dequantized`,
    leaves that `forms` has are returned as the floats that their codes stand for, float32.
    """

    leaves: Mapping[str, Any]
    layer_paths: Mapping[str, list[str]]
    forms: Mapping[str, Form]
    dequantized: bool = False
    _homes: dict[str, tuple[str, int | None]] = field(init=False)
    _kept: tuple[str, np.ndarray] | None = field(default=None, init=False)
    _lock: Lock = field(default_factory=Lock, init=False)

    def __post_init__(self) -> None:
        beside = {f"{path}{end}" for path in self.forms for end in BESIDE}
        stacked = {path: parts != [path] for path, parts in self.layer_paths.items()}
        self._homes = {
            part: (path, row if stacked[path] else None)
            for path, parts in self.layer_paths.items()
            for row, part in enumerate(parts)
            if not (self.dequantized and path in beside)
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {part: self._shape(path)[row is not None :] for part, (path, row) in self._homes.items()}

    def _shape(self, path: str) -> tuple[int, ...]:
        shape = self.leaves[path].shape
        if not (self.dequantized and path in self.forms):
            return shape
        *lead, columns = shape
        return (*lead, columns * self.forms[path].per_byte)

    def dtype_of(self, part: str) -> np.dtype:
        path, _ = self._homes[part]
        return np.dtype(np.float32 if self.dequantized and path in self.forms else self.leaves[path].dtype)

    def form_of(self, part: str) -> Form | None:
        """Returns how the parameter is stored, if it is by codes."""
        return self.forms.get(self._homes[part][0])

    def __getitem__(self, part: str) -> np.ndarray:
        with self._lock:  # several threads may want experts of one array, which is fetched once
            if self._kept is None or self._kept[0] != part:
                self._kept = (part, self._fetch(part))
            return self._kept[1]

    def _fetch(self, part: str) -> np.ndarray:
        path, row = self._homes[part]
        form = self.forms.get(path) if self.dequantized else None
        if form is None:
            return on_host(self.leaves[path], row)
        found = {end: self.leaves.get(f"{path}{end}") for end in ("", *BESIDE)}
        return floats_of({end: on_host(leaf, row) for end, leaf in found.items() if leaf is not None}, form)


def on_host(array: Any, row: int | None = None) -> np.ndarray:
    """Returns the array, or one row of it, as numpy's. If it is spread over processes, all of them have to call this.

    Devices then hold the array, or that row, whole for a moment.
    """
    if not isinstance(array, jax.Array):
        return array if row is None else array[row]
    if row is not None:
        array = _row(array, row)
    if is_spread(array):
        return multihost_utils.process_allgather(array, tiled=True)
    # an array keeps the copy made for numpy; the copy of a temporary array of the same shards is freed with that array
    shards = [shard.data for shard in array.addressable_shards]
    return np.asarray(jax.make_array_from_single_device_arrays(array.shape, array.sharding, shards))


def is_spread(array: Any) -> bool:
    """True if some of the array is on devices of other processes."""
    return isinstance(array, jax.Array) and not array.is_fully_addressable


def write_whole(leaves: Mapping[str, Any], tensors: Sequence[Entry], write: Callable[[Sequence[Entry]], None]) -> None:
    """Calls `write` with the tensors, which are made of `leaves`.

    If those are spread over processes, the first process writes, and all others contribute their parts.
    """
    with donations_explained():
        if not any(map(is_spread, leaves.values())):
            write(tensors)
            return
        *described, functions = zip(*tensors, strict=True)
        put_together(functions, lambda whole: write(list(zip(*described, whole, strict=True))))


@jax.jit
def _row(array: jax.Array, row: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(array, row, keepdims=False)


def entries(parameters: Parameters, names: Names) -> list[Entry]:
    """Returns every tensor of the checkpoint that `names` describes, in the order of the parameters."""
    shapes = parameters.shapes()
    expressions = {path: names.expression(path, shapes) for path in shapes}
    found: list[Entry] = []
    for name, paths in source_names(expressions).items():
        shape = expressions[paths[0]].shapes(shapes[paths[0]])[name]
        dtype = np.dtype(reduce(jnp.promote_types, map(parameters.dtype_of, paths)))

        def values(
            name: str = name, shape: tuple[int, ...] = shape, dtype: np.dtype = dtype, paths: list[str] = paths
        ) -> np.ndarray:
            parts = (piece for path in paths for piece in expressions[path].pieces(parameters[path]))
            return assemble(shape, dtype, [piece for piece in parts if piece[0] == name])

        found.append((name, shape, dtype, values))
    return found
