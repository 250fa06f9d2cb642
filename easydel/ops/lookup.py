"""Rows of a table by index, where the table is split over a mesh: indices and rows travel, the table stays.

XLA's own partitioning gathers the table for every look-up, and adds its gradient up as a whole on every device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from easydel.ops import few_rows_of_table
from easydel.sharding.axes import AxisName, names_in
from easydel.sharding.placement import fit

# R rows of the table, D features


@dataclass(frozen=True)
class Split:
    """The mesh axes of a table's two dimensions, and of an index's first two dimensions: batch and sequence."""

    mesh: Mesh
    rows: AxisName
    columns: AxisName
    index: tuple[AxisName, AxisName]

    def specs(self, table: tuple[int, ...], index: tuple[int, ...]) -> tuple[PartitionSpec, PartitionSpec]:
        """Returns how arrays of these shapes are split. An axis that splits rows splits neither columns nor indices."""
        table_spec = fit(table, (self.rows, self.columns), self.mesh)
        rows = names_in(table_spec[0])
        axes = [tuple(name for name in names_in(axis) if name not in rows) for axis in self.index]
        axes += [()] * len(index)
        return table_spec, fit(index, axes[: len(index)], self.mesh)


def look_up(table_RD: jax.Array, index: jax.Array, split: Split | None) -> jax.Array:
    """Returns the rows of a table [R, D] with numbers `index`, [..., D]; numbers beyond the table mean its last row.

    `split` is None on one device. Gradients by the table are added up in float32.
    """
    if split is None or split.mesh.size == 1:
        return _rows(table_RD, index, split)
    return _look_up(split, table_RD, jnp.clip(index, 0, table_RD.shape[0] - 1))


def sliceable(codes: jax.Array) -> jax.Array:
    """Returns codes for slices of them: those of float8 as bytes, as XLA would make floats of all of them first."""
    if codes.dtype.itemsize > 1 or not jnp.issubdtype(codes.dtype, jnp.floating):
        return codes
    return jax.lax.bitcast_convert_type(codes, jnp.uint8)


def _rows(table_RD: jax.Array, index: jax.Array, split: Split | None) -> jax.Array:
    """Returns rows of a table, or of the part that is on this device."""
    platform = jax.default_backend() if split is None else split.mesh.devices.flat[0].platform
    few = platform == "tpu" and few_rows_of_table.takes(index.size, table_RD)
    return _few(table_RD, index) if few else _take(table_RD, index)


def _take(table_RD: jax.Array, index: jax.Array) -> jax.Array:
    return _bits_as(table_RD.dtype, jnp.take(sliceable(table_RD), index, axis=0, mode="clip"))


def _bits_as(dtype: Any, x: jax.Array) -> jax.Array:
    """Returns the same bits as a dtype; unchanged if it has that, as no gradient goes through what has its bits."""
    return x if x.dtype == dtype else jax.lax.bitcast_convert_type(x, dtype)


@jax.custom_jvp
def _few(table_RD: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.platform_dependent(table_RD, index, default=_take, tpu=_by_tiles)


@_few.defjvp
def _(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, Any]) -> tuple[jax.Array, jax.Array]:
    return _few(*primals), _take(tangents[0], primals[1])


def _by_tiles(table_RD: jax.Array, index: jax.Array) -> jax.Array:
    bits = few_rows_of_table.look_up(table_RD, jnp.clip(index, 0, table_RD.shape[0] - 1))
    return _bits_as(table_RD.dtype, bits)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _look_up(split: Split, table_RD: jax.Array, index: jax.Array) -> jax.Array:
    table, tokens = split.specs(table_RD.shape, index.shape)
    sends, repeats = _columns(table, tokens)

    def local(table_RD: jax.Array, index: jax.Array) -> jax.Array:
        place, here = _places(table_RD.shape[0], _shared(index, sends), table)
        rows = sliceable(_rows(table_RD, place, split))
        rows = rows if table[0] is None else jnp.where(here[..., None], rows, 0)
        for axis, number in _innermost(table, sends):
            if axis in repeats:
                rows = jax.lax.all_gather(rows, axis, axis=rows.ndim - 1, tiled=True)
            else:
                rows = jax.lax.all_to_all(rows, axis, number, rows.ndim - 1, tiled=True)
        rows = rows.reshape(*index.shape, -1)
        rows = rows if table[0] is None else jax.lax.psum(rows, names_in(table[0]))
        return _bits_as(table_RD.dtype, rows)

    return jax.shard_map(
        local, mesh=split.mesh, in_specs=(table, tokens), out_specs=PartitionSpec(*tokens, None), check_vma=False
    )(table_RD, index)


def _forward(split: Split, table_RD: jax.Array, index: jax.Array) -> tuple[jax.Array, Any]:
    return _look_up(split, table_RD, index), (index, jnp.zeros((0, *table_RD.shape), table_RD.dtype))


def _backward(split: Split, saved: Any, by_rows: jax.Array) -> tuple[jax.Array, None]:
    index, like = saved
    shape, dtype = like.shape[1:], like.dtype
    table, tokens = split.specs(shape, index.shape)
    sends, repeats = _columns(table, tokens)
    local_shape = jax.sharding.NamedSharding(split.mesh, table).shard_shape(shape)
    others = tuple(name for axis in tokens for name in names_in(axis) if name not in sends)

    def local(index: jax.Array, rows: jax.Array) -> jax.Array:
        place, here = _places(local_shape[0], _shared(index, sends), table)
        rows = rows.reshape((1,) * len(sends) + rows.shape)
        for axis, number in reversed(_innermost(table, sends)):
            if axis in repeats:
                width = rows.shape[-1] // jax.lax.axis_size(axis)
                start = jax.lax.axis_index(axis) * width
                rows = jax.lax.dynamic_slice_in_dim(rows, start, width, axis=rows.ndim - 1)
            else:
                rows = jax.lax.all_to_all(rows, axis, rows.ndim - 1, number, tiled=True)
        rows = jnp.where(here[..., None], rows, 0).astype(jnp.float32)
        summed = jnp.zeros(local_shape, jnp.float32).at[place].add(rows, mode="clip")
        return (jax.lax.psum(summed, others) if others else summed).astype(dtype)

    mapped = jax.shard_map(
        local, mesh=split.mesh, in_specs=(tokens, PartitionSpec(*tokens, None)), out_specs=table, check_vma=False
    )
    return mapped(index, by_rows), None


_look_up.defvjp(_forward, _backward)


def _columns(table: PartitionSpec, tokens: PartitionSpec) -> tuple[list[str], list[str]]:
    """Returns the axes of the table's columns: those that split the indices too, and those that do not."""
    split = {name for axis in tokens for name in names_in(axis)}
    columns = names_in(table[1])
    return [name for name in columns if name in split], [name for name in columns if name not in split]


def _innermost(table: PartitionSpec, sends: list[str]) -> list[tuple[str, int]]:
    """Returns the axes of the columns, the innermost first, each with the dimension of what `_shared` returns."""
    return [(name, sends.index(name) if name in sends else -1) for name in reversed(names_in(table[1]))]


def _shared(index: jax.Array, sends: list[str]) -> jax.Array:
    """Returns the indices of all devices with other columns, with a dimension in front for each axis of `sends`."""
    for axis in reversed(sends):
        index = jax.lax.all_gather(index, axis)
    return index


def _places(rows: int, index: jax.Array, table: PartitionSpec) -> tuple[jax.Array, jax.Array]:
    """Returns the place of each row among the `rows` on this device, and whether it is here."""
    first = 0 if table[0] is None else jax.lax.axis_index(table[0]) * rows
    place = index - first
    return place, (place >= 0) & (place < rows)
