"""Products of few rows with a matrix whose columns are split over a mesh: the matrix stays, and sums of rows travel.

XLA's own partitioning sums all that a product returns: also rows that only fill up a TPU's matrix unit, and in float32
where that is what the sums become next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from easydel.ops.coded import Coded
from easydel.ops.exchange import added_up
from easydel.sharding.axes import AxisName, axis_of, names_in, size_over, without
from easydel.sharding.placement import fit

Matrix = jax.Array | Coded


@dataclass(frozen=True)
class SplitProduct:
    """How x [rows, ..., in], a matrix [out, in] and their product [rows, ..., out] are split; sums go over `summed`."""

    mesh: Mesh
    x: PartitionSpec
    matrix: Any
    y: PartitionSpec
    summed: tuple[str, ...]

    @classmethod
    def of(
        cls,
        mesh: Mesh,
        batch: AxisName,
        shape: tuple[int, ...],
        matrix: Matrix,
        split: PartitionSpec,
        *,
        always: bool = False,
    ) -> SplitProduct | None:
        """Returns the splits for x of a `shape`, whose rows are split over `batch` where the matrix is not.

        The matrix is `split` over axes (out, in). None if its columns, or those of its scales, are not; with
        `always`, only if they cannot be.
        """
        out, columns = split = PartitionSpec(*(axis_of(names_in(axis)) for axis in split))
        specs, summed = _specs(matrix, split, mesh), names_in(columns)
        if specs is None or (size_over(summed, mesh) == 1 and not always):
            return None
        rows, between = (
            fit(shape[:1], (without(batch, (*names_in(out), *summed)),), mesh)[0],
            (None,) * (len(shape) - 2),
        )
        return cls(mesh, PartitionSpec(rows, *between, columns), specs, PartitionSpec(rows, *between, out), summed)

    def __call__(self, product: Callable[[jax.Array, Any], jax.Array], x: jax.Array, matrix: Matrix) -> jax.Array:
        """Returns `product` of x and the matrix, which each device computes of its own columns alone."""
        mapped = jax.shard_map(
            lambda x, matrix: added_up(product(x, matrix), self.summed),
            mesh=self.mesh,
            in_specs=(self.x, self.matrix),
            out_specs=self.y,
            check_vma=False,
        )
        return mapped(x, matrix)


def _specs(matrix: Matrix, split: PartitionSpec, mesh: Mesh) -> Any:
    """Returns how each array of a matrix, which has neither order nor gains, is split; None if not all are alike.

    None too where a device would have a part of a block whose rows lie apart.
    """
    if isinstance(matrix, Coded) and matrix.form.runs(matrix.shape[0]) % size_over(names_in(split[0]), mesh):
        return None
    specs = jax.tree.map(lambda array: PartitionSpec(*split[: array.ndim]), matrix)
    fitting = jax.tree.map(lambda array: fit(array.shape, split[: array.ndim], mesh), matrix)
    return specs if specs == fitting else None
