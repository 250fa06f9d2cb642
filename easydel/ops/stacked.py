"""One layer's part of an array that several layers share, in a scan: read and written where it lies.

Taken out of the array as a whole, it would be copied twice in each layer: before it is read, and to put it back.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import jax
from jax.experimental.layout import Layout, with_layout_constraint

TILE = (8, 128)  # rows and columns that a TPU's memory has room for, at least


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stacked:
    """The arrays of layers [layers, ...], and the `number` of one of them.

    `holds`: what that layer wrote in this call is already in there. `tpu` is the platform that it is for.
    """

    arrays: jax.Array
    number: jax.Array
    holds: bool = field(default=False, metadata={"static": True})
    tpu: bool = field(default=False, metadata={"static": True})

    @property
    def own(self) -> jax.Array:
        """The layer's array."""
        return jax.lax.dynamic_index_in_dim(self.arrays, self.number, keepdims=False)

    def cut(self, start: jax.Array | int, size: int, dim: int) -> jax.Array:
        """Returns `size` entries of the layer's array along a dimension, from number `start` on."""
        sizes = [size if index == dim else length for index, length in enumerate(self.arrays.shape[1:])]
        return jax.lax.dynamic_slice(self.arrays, self._first(start, dim), (1, *sizes))[0]

    def written(self, part: jax.Array, place: jax.Array | int, dim: int) -> Stacked:
        """Returns the same with `part` in the layer's array, at `place` of a dimension."""
        arrays = jax.lax.dynamic_update_slice(self.arrays, part[None], self._first(place, dim))
        return replace(self, arrays=self._laid_out(arrays), holds=True)

    def put(self, own: jax.Array) -> jax.Array:
        """Returns the arrays with `own` as that of the layer."""
        return jax.lax.dynamic_update_index_in_dim(self.arrays, own.astype(self.arrays.dtype), self.number, 0)

    def _laid_out(self, arrays: jax.Array) -> jax.Array:
        """Returns the arrays in the layout that a TPU's programs get and return them in: the one with less padding.

        Else XLA chooses the one that suits what is written, and copies everything to it and back.
        """
        if not self.tpu:
            return arrays
        order, (rows, columns) = list(range(arrays.ndim)), arrays.shape[-2:]
        if _tiles(columns, rows) < _tiles(rows, columns):
            order[-2:] = reversed(order[-2:])
        return with_layout_constraint(arrays, Layout(major_to_minor=tuple(order)))

    def _first(self, place: jax.Array | int, dim: int) -> list[jax.Array | int]:
        return [self.number, *(place if index == dim else 0 for index in range(self.arrays.ndim - 1))]


def _tiles(rows: int, columns: int) -> int:
    """Returns the number of tiles that a matrix takes."""
    return -(-rows // TILE[0]) * -(-columns // TILE[1])
