"""From filled memory to arrays on devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby

import jax
import numpy as np

from easydel.weights.expressions import Index
from easydel.weights.parts import DevicePart, Key, full_key, key_of

Arrived = Callable[[str, jax.Array], jax.Array]


@dataclass
class Arrays:
    """The arrays of a load, by path, made from parts as they come. `arrived` gets each and returns the array to keep.

    `missing` counts the parts that each array still lacks.
    """

    shapes: Mapping[str, tuple[int, ...]]
    placements: Mapping[str, jax.sharding.Sharding]
    missing: Counter[str]
    arrived: Arrived | None
    made: dict[str, jax.Array] = field(default_factory=dict)
    _shards: dict[str, list[jax.Array]] = field(default_factory=dict)

    @property
    def on_host(self) -> bool:
        """True if arrays use the filled memory itself, as soon as they are made."""
        devices = {device for placement in self.placements.values() for device in placement.device_set}
        return self.arrived is None and all(device.platform == "cpu" for device in devices)

    def add(self, parts: Iterable[DevicePart]) -> None:
        """Consumes filled parts: their memory belongs to the arrays from then on."""
        for path, found in groupby(sorted(parts, key=lambda part: part.path), lambda part: part.path):
            array = self._joined(path, list(found))
            if array is not None:
                self.made[path] = array if self.arrived is None else self.arrived(path, array)

    def _joined(self, path: str, parts: list[DevicePart]) -> jax.Array | None:
        """Returns the array if these are its last parts; else sends the parts to their devices and returns None.

        Making a whole array at once takes a fraction of the time of one array per device, but large arrays shall not
        wait in this process's own memory until they are complete.
        """
        whole = len(parts) == self.missing[path] and path not in self._shards
        self.missing[path] -= len(parts)
        memory = [(part, part.taken()) for part in parts]
        if whole:
            return self._whole(path, {key_of(part.index): values for part, values in memory})
        pairs = [(values, device) for part, values in memory for device in part.devices]
        sent = jax.device_put([values for values, _ in pairs], [device for _, device in pairs])
        self._shards.setdefault(path, []).extend(sent)
        if self.missing[path]:
            return None
        shards = self._shards.pop(path)
        return jax.make_array_from_single_device_arrays(self.shapes[path], self.placements[path], shards)

    def _whole(self, path: str, by_key: Mapping[Key, np.ndarray]) -> jax.Array:
        shape = self.shapes[path]

        def find(index: Index | None) -> np.ndarray:
            return by_key[full_key(index or (), shape)]

        dtype = next(iter(by_key.values())).dtype
        return jax.make_array_from_callback(shape, self.placements[path], find, dtype=dtype)
