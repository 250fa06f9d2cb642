"""Reading by many hosts: each reads whole rows of a file, though its devices are to hold a few columns of all rows.

A file is read in pages, so of rows that are split over 64 hosts each host would read most, and quantizing needs whole
rows in any case. So rows are dealt to the hosts, and devices exchange their parts when all have arrived.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from easydel.forms import SCALE, Form
from easydel.sharding.hosts import Hosts, Spec, spec_of
from easydel.weights.expressions import source_names
from easydel.weights.plan import Plan
from easydel.weights.read import bytes_of
from easydel.weights.sources import TensorSource

RUN_BYTES = 64 << 10  # the pages at both ends of a longer run of a row weigh little
PAGE_BYTES = 4 << 10


@dataclass(frozen=True)
class ByHosts:
    """The reads of a load by many hosts. `splits` are those of the parameters of the plan, and of scales."""

    plan: Plan
    splits: Mapping[str, Spec]
    rounded: Mapping[str, Form]
    hosts: Hosts

    def otherwise(self) -> dict[str, Spec]:
        """Returns the split to read with, of the parameters that are better not read as they will be held."""
        found: dict[str, Spec] = {}
        for path, shape in self.plan.shapes.items():
            if len(shape) < 2 or self._row_share(path) == 1:
                continue
            if path not in self.rounded and self._run(path) >= RUN_BYTES:
                continue
            whole = self.hosts.with_whole(self._row_dim(path), self.splits[path], shape)
            if whole is not None:
                found[path] = whole
                if path in self.rounded:
                    by_rows = self.rounded[path].is_by_rows(shape[-1])
                    found[f"{path}{SCALE}"] = whole[:-1] if by_rows else whole
        return found

    def bytes_read(self) -> tuple[float, float]:
        """Returns the bytes of files that a host reads, pages at the ends of runs included, and those of its parts."""
        others, read, own = self.otherwise(), 0.0, 0.0
        for path, spec in self.splits.items():
            if (total := self._bytes(path, self.plan.shapes.get(path, ()))) == 0:
                continue
            own += total * self.hosts.share(spec)
            if path in others:
                read += total * self.hosts.share(others[path])
            elif path in self.rounded:
                read += total * self.hosts.share((*spec[:-1], None))
            else:
                pages = 1 + PAGE_BYTES / self._run(path) if self._row_share(path) < 1 else 1
                read += total * self.hosts.share(spec) * min(pages, 1 / self._row_share(path))
        return read, own

    def _row_dim(self, path: str) -> int:
        """Returns the dimension of a parameter that lies along the rows of the file; quantizing needs its last one."""
        return -2 if path not in self.rounded and self.plan.is_transposed(path) else -1

    def _row_share(self, path: str) -> float:
        """Returns the share of each row that a host's devices hold."""
        spec = self.splits[path]
        return self.hosts.share((spec[self._row_dim(path)],)) if spec else 1

    def _run(self, path: str) -> float:
        """Returns the bytes of that share."""
        return self._row_share(path) * self._bytes(path, self.plan.shapes[path][self._row_dim(path) :][:1])

    def _bytes(self, path: str, sizes: Iterable[int]) -> int:
        """Returns the bytes of a file for an array of those sizes of the parameter; 0 if none has it."""
        if (expression := self.plan.expressions.get(path)) is None:
            return 0
        names = source_names({path: expression})
        tensor: TensorSource | None = self.plan.tensors[next(iter(names))] if names else None
        return 0 if tensor is None else bytes_of(tensor, prod(sizes))


def read_placements(
    plan: Plan, placements: Mapping[str, Sharding], rounded: Mapping[str, Form], mesh: Mesh | None
) -> dict[str, Sharding]:
    """Returns the placements to read parameters with, of those that several processes read otherwise than they hold."""
    if mesh is None or not mesh.is_multi_process:
        return {}
    shapes = {f"{path}{SCALE}": form.scales_shape(plan.shapes[path]) for path, form in rounded.items()}
    shapes |= plan.shapes
    if not all(isinstance(one, NamedSharding) and one.mesh == mesh for one in placements.values()):
        return {}
    splits = {path: spec_of(placements[path], len(shape)) for path, shape in shapes.items()}  # type: ignore[arg-type]
    found = ByHosts(plan, splits, rounded, Hosts.of(mesh)).otherwise()
    return {path: NamedSharding(mesh, PartitionSpec(*spec)) for path, spec in found.items()}


def moved(array: jax.Array, placement: Sharding) -> jax.Array:
    """Returns the array with its parts exchanged between devices; all processes have to call it."""
    return _mover(placement)(array)


@cache
def _mover(placement: Sharding) -> jax.stages.Wrapped:
    return jax.jit(lambda array: array, out_shardings=placement)
