"""Sums of matrices over devices, of which each device keeps some columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from easydel.sharding.axes import axis_of
from easydel.sharding.mesh import divisors

# R rows, C columns
LANES = 128  # of a TPU's vectors: XLA does not scatter pieces of rows that do not fill them
EVEN = 512  # rows, of which it scatters every multiple


def scattered(x: jax.Array, names: Sequence[str], dim: int, mesh: Mesh) -> jax.Array:
    """Returns this device's part, along `dim`, of the sum over mesh axes `names`; inside of a `shard_map`.

    Where all chips of a plane or a cube share a sum, XLA for TPUs makes an all-reduce of a reduce-scatter: twice the
    bytes, and the whole sum on each chip. Two reduce-scatters, each over groups of chips, stay what they are.
    """
    active = [name for name in names if mesh.shape[name] > 1] or list(names)
    over_all = mesh.size == jax.lax.axis_size(tuple(active))
    if mesh.devices.flat[0].platform == "tpu" and over_all and x.ndim == 2 and dim == 1:
        return in_steps(x, active)
    return jax.lax.psum_scatter(x, axis_of(active), scatter_dimension=dim, tiled=True)


def in_steps(x_RC: jax.Array, names: Sequence[str]) -> jax.Array:
    """Returns this device's columns of the sum, found in a step for each mesh axis, or in two for a single one."""
    rows = x_RC.shape[0]
    x_RC = x_RC if _cut_well(rows) else jnp.pad(x_RC, ((0, -rows % EVEN), (0, 0)))
    for name in names:
        for groups in _two_ways(jax.lax.axis_size(name)) if len(names) == 1 else (None,):
            x_RC = _step(x_RC, name, groups)
    return x_RC[:rows]


def _step(x_RC: jax.Array, name: str, groups: list[list[int]] | None) -> jax.Array:
    parts = jax.lax.axis_size(name) if groups is None else len(groups[0])
    if x_RC.shape[1] // parts % LANES == 0:
        return jax.lax.psum_scatter(x_RC, name, scatter_dimension=1, axis_index_groups=groups, tiled=True)
    return jax.lax.psum_scatter(x_RC.T, name, scatter_dimension=0, axis_index_groups=groups, tiled=True).T


def _two_ways(size: int) -> Iterator[list[list[int]]]:
    """Yields the columns, and then the rows, of the squarest grid of `size` devices."""
    rows = max(rows for rows in divisors(size) if rows * rows <= size)
    columns = size // rows
    if rows > 1:
        yield [list(range(column, size, columns)) for column in range(columns)]
    yield [list(range(row * columns, (row + 1) * columns)) for row in range(rows)]


def _cut_well(rows: int) -> bool:
    """True if XLA cuts rows, 8 of which are a tile, into even pieces; 32 to 512 tiles were found by trying sizes."""
    return any(32 <= tiles <= 512 for tiles in divisors(-(-rows // 8)))
