"""The hosts of a mesh, and the parts of arrays that the devices of one host hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from easydel.errors import ArgumentError
from easydel.sharding.axes import AxisName, axis_of, names_in

Spec = tuple[AxisName, ...]  # the mesh axes of each dimension


@dataclass(frozen=True, eq=False)
class Hosts:
    """The host of each device of a mesh: numbers in a grid like the mesh's, whose dimensions are the axes `names`."""

    grid: np.ndarray
    names: tuple[str, ...]
    _held: dict[Spec, int] = field(default_factory=dict)

    @classmethod
    def of(cls, mesh: Mesh) -> Hosts:
        """Returns the processes of the devices of a mesh."""
        numbers = [device.process_index for device in mesh.devices.flat]
        return cls(np.reshape(numbers, mesh.devices.shape), mesh.axis_names)

    @classmethod
    def planned(cls, mesh: AbstractMesh | Mesh, count: int) -> Hosts:
        """Returns `count` hosts that the devices of a mesh are dealt to in order: neighbours are on one host."""
        if mesh.size % count:
            raise ArgumentError(f"{mesh.size} devices cannot be dealt to {count} hosts", hint="each has equally many")
        sizes = tuple(mesh.shape.values())
        return cls((np.arange(mesh.size) // (mesh.size // count)).reshape(sizes), tuple(mesh.axis_names))

    def parts(self, spec: Spec) -> int:
        """Returns the number of parts that an array with this split has."""
        return prod(self._size(name) for axis in spec for name in names_in(axis))

    def held(self, spec: Spec) -> int:
        """Returns the number of different parts that the devices of one host hold: of the host with the most."""
        if spec not in self._held:
            axes = [self.names.index(name) for axis in spec for name in names_in(axis)]
            places = np.indices(self.grid.shape)[axes].reshape(len(axes), self.grid.size)
            different = np.unique([self.grid.ravel(), *places], axis=1)[0]
            self._held[spec] = int(np.unique(different, return_counts=True)[1].max())
        return self._held[spec]

    def share(self, spec: Spec) -> float:
        """Returns the share of an array that these are."""
        return self.held(spec) / self.parts(spec)

    def with_whole(self, dim: int, spec: Spec, shape: Sequence[int]) -> Spec | None:
        """Returns a split in which dimension `dim` is whole, and another has its mesh axes, besides its own if it can.

        No host holds more of the array than with `spec`. None if no other dimension can be split so.
        """
        dim, moved = dim % len(spec), names_in(spec[dim])
        for other in sorted(set(range(len(spec))) - {dim}, reverse=True):
            for names in ((*names_in(spec[other]), *moved), moved):
                axes = {dim: None, other: axis_of(names)}
                found = tuple(axes.get(place, axis) for place, axis in enumerate(spec))
                divides = shape[other] % prod(map(self._size, names)) == 0
                if divides and self.share(found) <= self.share(spec):
                    return found
        return None

    def _size(self, name: str) -> int:
        return self.grid.shape[self.names.index(name)]


def spec_of(sharding: NamedSharding, dims: int) -> Spec:
    """Returns the mesh axes of each of an array's dimensions."""
    return (*sharding.spec, *[None] * (dims - len(sharding.spec)))
