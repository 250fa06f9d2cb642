"""Products of few rows with the matrix of their own group on a TPU, by a Pallas kernel: experts, while decoding.

A step takes eight rows, in their order, and one group that has some of them. Groups without rows are not read.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from easydel.forms import Form
from easydel.ops import few_rows
from easydel.ops.few_rows_tiles import (
    LANES,
    blocks_of,
    by_places,
    numbers_of,
    products,
    put_together,
    scratch,
    split_off,
    table_of,
    take_numbers,
    tile_of,
)

# A steps, M rows sorted by group, E groups, O rows of a matrix, I columns, W bytes of a row, S blocks of a row
TOGETHER = 8  # rows of a step
MOST = 1024  # rows whose sums fit into fast memory
GROUP, ROWS, FIRST, STOP, STEPS = range(5)  # what `_steps` says of a step


def takes(x_MI: jax.Array, matrix: Any, chip: str) -> bool:
    """True if the kernel can multiply these rows, at most eight for each group, with a `Coded` of three dimensions."""
    rows, groups = x_MI.shape[0], matrix.codes.shape[0]
    one = jax.tree.map(lambda part: jax.ShapeDtypeStruct(part.shape[1:], part.dtype), matrix)
    return rows <= min(TOGETHER * groups, MOST) and few_rows.can(TOGETHER, x_MI.dtype, one, chip)


def product(x_MI: jax.Array, matrix: Any, sizes_E: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Returns rows times the transposes of their matrices [E, O, I], for which `takes` is true: [M, O].

    Scales of whole rows of the matrices are left out.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    M, (groups, outputs, W), form, S = x_MI.shape[0], matrix.codes.shape, matrix.form, blocks_of(matrix)
    rows = -(-M // TOGETHER) * TOGETHER
    steps = min(groups, M) + rows // TOGETHER - 1
    at = _steps(sizes_E, steps)
    each = steps < groups  # then only the scales of each step's group are put in order
    own = matrix.with_numbers(lambda part: part[at[GROUP]]) if each else matrix
    numbers = numbers_of(own, scaled=not matrix.scales_outputs)
    codes_EOW, *numbers = few_rows.in_hbm(matrix.codes, *numbers, interpret=interpret)
    x_PMW, table, (tall, wide) = by_places(x_MI, rows, form), table_of(form), tile_of(matrix)
    last = W // wide - 1

    def codes_of(i: Any, a: Any, j: Any, at: Any) -> tuple[Any, Any, Any]:
        return at[GROUP, a], i, jnp.where(a < at[STEPS, a], j, last)  # after the last step, nothing else is read

    def numbers_at(i: Any, a: Any, j: Any, at: Any) -> tuple[Any, Any, Any]:
        return a if each else at[GROUP, a], 0, i

    y_MO = pl.pallas_call(
        partial(_kernel, width=W // S, form=form),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(pl.cdiv(outputs, tall), steps, last + 1),
            in_specs=[
                pl.BlockSpec(table.shape, lambda i, a, j, at: (0, 0)),
                pl.BlockSpec((form.per_byte, TOGETHER, W), lambda i, a, j, at: (0, at[ROWS, a], 0)),
                pl.BlockSpec((None, tall, wide), codes_of),
                *[pl.BlockSpec((None, S, tall), numbers_at) for _ in numbers],
            ],
            out_specs=pl.BlockSpec((rows, tall), lambda i, a, j, at: (0, i)),
            scratch_shapes=scratch(rows, tall, S, form),
        ),
        out_shape=jax.ShapeDtypeStruct((rows, outputs), x_MI.dtype if matrix.factors is None else jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary", "arbitrary")),
        interpret=interpret,
    )(at, table, x_PMW, codes_EOW, *numbers)[:M]
    if matrix.factors is None:
        return y_MO
    group_M = jnp.searchsorted(jnp.cumsum(sizes_E), jnp.arange(M), side="right", method="compare_all")
    return (y_MO * matrix.factors.at[group_M].get(mode="clip")[:, None]).astype(x_MI.dtype)


def _steps(sizes_E: jax.Array, steps: int) -> jax.Array:
    """Returns of each step its group, its rows (in eights), the group's first row and end, and the number of steps.

    Those that are too many repeat the last one.
    """
    stop_E = jnp.cumsum(sizes_E)
    first_E = stop_E - sizes_E
    count_E = jnp.where(sizes_E > 0, (stop_E - 1) // TOGETHER - first_E // TOGETHER + 1, 0)
    until_E = jnp.cumsum(count_E)
    step_A = jnp.minimum(jnp.arange(steps), jnp.maximum(until_E[-1] - 1, 0))
    group_A = jnp.searchsorted(until_E, step_A, side="right", method="compare_all")
    group_A = jnp.minimum(group_A, sizes_E.size - 1)  # where no group has rows
    rows_A = first_E[group_A] // TOGETHER + step_A - (until_E - count_E)[group_A]
    found = (group_A, jnp.maximum(rows_A, 0), first_E[group_A], stop_E[group_A], jnp.full(steps, until_E[-1]))
    return jnp.stack(found).astype(jnp.int32)


def _kernel(at: Any, table: Any, x_PMW: Any, codes_OW: Any, *others: Any, width: int, form: Form) -> None:
    """Adds up the products of a step with a tile; the others are as in `few_rows`."""
    from jax.experimental import pallas as pl

    numbers, (y_MO, scales_HSO, sums_HMO, *shifts_HSO) = split_off(others, form)
    a, column, wide = pl.program_id(1), pl.program_id(2), codes_OW.shape[1]

    @pl.when((a == 0) & (column == 0))
    def start() -> None:
        sums_HMO[...] = jnp.zeros_like(sums_HMO)

    @pl.when((a < at[STEPS, a]) & (column == 0))
    def take() -> None:
        take_numbers(numbers, (scales_HSO, *shifts_HSO))

    @pl.when(a < at[STEPS, a])
    def step() -> None:
        def of_group(x: jax.Array) -> jax.Array:
            """Returns `x` with zeros in the rows of other groups."""
            number = at[ROWS, a] * TOGETHER + jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
            return jnp.where((number >= at[FIRST, a]) & (number < at[STOP, a]), x, 0.0)

        def inputs(place: int, first: int) -> jax.Array:
            here = pl.ds(pl.multiple_of(column * wide + first, LANES), LANES)
            return of_group(x_PMW[place, :, here].astype(jnp.float32))

        rows = pl.ds(pl.multiple_of(at[ROWS, a] * TOGETHER, TOGETHER), TOGETHER)
        found = products(inputs, codes_OW, scales_HSO, *shifts_HSO, table=table, column=column, width=width, form=form)
        for parity, sums in enumerate(found):
            sums_HMO[parity, rows, :] += of_group(sums)  # zero times Inf, in a scale, is not zero

    @pl.when((a == pl.num_programs(1) - 1) & (column == pl.num_programs(2) - 1))
    def end() -> None:
        put_together(sums_HMO, y_MO)
