"""The part of an array that each device holds, and the memory that the part is read into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any

import jax
import numpy as np

from easydel.weights.expressions import Index

Key = tuple[tuple[int, int], ...]


@dataclass
class DevicePart:
    """A part of an array on some devices. `values` is None until memory is assigned; mapped parts have it at once."""

    path: str
    index: Index
    devices: Sequence[Any]
    dtype: np.dtype
    values: np.ndarray | None = None
    shape: tuple[int, ...] = field(init=False)
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.shape = tuple([part.stop - part.start for part in self.index])
        self.nbytes = prod(self.shape) * self.dtype.itemsize

    @property
    def span(self) -> tuple[int, int]:
        """The first of the part's rows in the array, and the row after its last."""
        return self.index[0].start, self.index[0].stop

    def taken(self) -> np.ndarray:
        """Returns the memory and forgets it: an array that uses it keeps it alive, otherwise it is freed."""
        assert self.values is not None
        values, self.values = self.values, None
        return values

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Returns the memory of rows `start` to `stop` of the array."""
        assert self.values is not None
        return self.values[start - self.index[0].start : stop - self.index[0].start] if self.index else self.values


def parts_of(path: str, shape: tuple[int, ...], placement: jax.sharding.Sharding, dtype: np.dtype) -> list[DevicePart]:
    """Returns the distinct parts of an array on this process's devices, in the order of their first element."""
    return [DevicePart(path, index, devices, dtype) for index, devices in _split(shape, placement)]


@lru_cache
def _split(shape: tuple[int, ...], placement: jax.sharding.Sharding) -> list[tuple[Index, list[Any]]]:
    devices: dict[Key, list[Any]] = {}
    for device, index in placement.addressable_devices_indices_map(shape).items():
        devices.setdefault(full_key(index or (), shape), []).append(device)
    return [(tuple(slice(*range_) for range_ in key), devices[key]) for key in sorted(devices)]


def full_key(index: Index, shape: tuple[int, ...]) -> Key:
    """Returns `key_of` for slices that may lack an end, as JAX's do."""
    return tuple(
        (part.start or 0, dim if part.stop is None else part.stop) for part, dim in zip(index, shape, strict=True)
    )


def key_of(index: Index) -> Key:
    """Returns slices with both ends as a dictionary key: Python hashes slices only from 3.12 on."""
    return tuple((part.start, part.stop) for part in index)
