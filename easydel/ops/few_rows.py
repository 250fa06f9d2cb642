"""Products of a few rows with a matrix of 4-bit or 8-bit codes on a TPU, by a Pallas kernel (`few_rows_tiles`)."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from easydel.forms import Form
from easydel.ops.few_rows_tiles import (
    LANES,
    blocks_of,
    by_places,
    fits,
    numbers_of,
    products,
    put_together,
    scratch,
    split_off,
    table_of,
    take_numbers,
    tile_of,
    values_of,
)

# M rows of inputs, O rows of the matrix, W bytes of a row, S blocks of a row, P codes in a byte, H parity of a row
MOST = 256  # rows of inputs times blocks in `LANES` bytes: of more, the matrix unit takes longer than the memory
KEPT = 1 << 20  # bytes of inputs that stay in fast memory; more are fetched again for each tile
WITHOUT_BFLOAT16 = ("TPU v2", "TPU v3")  # have no products of such numbers in kernels
WITHOUT_TABLES = (*WITHOUT_BFLOAT16, "TPU v4")  # have no look-ups in registers
# Chips on which the kernel is faster than XLA's own product with bytes of which each row has one scale, and for how
# many rows.
FASTER, FEW = ("TPU v5 lite", "TPU v6 lite", "TPU7x"), 64
SLOW_FLOAT8 = ("TPU v6 lite",)  # unless the bytes are these floats


def takes(rows: int, dtype: Any, matrix: Any, chip: str) -> bool:
    """True if the kernel is to multiply so many rows: if it can, and is faster than XLA.

    `matrix` is a `Coded` with two dimensions, and `chip` the kind of device, empty where that is no TPU.
    """
    if matrix.form.bits == 8 and matrix.scales_outputs:
        float8 = not jnp.issubdtype(matrix.form.code, jnp.integer)
        if rows > FEW or not chip.startswith(FASTER) or (float8 and chip.startswith(SLOW_FLOAT8)):
            return False
    return can(rows, dtype, matrix, chip)


def can(rows: int, dtype: Any, matrix: Any, chip: str) -> bool:
    """True if the kernel can multiply so many rows: bfloat16 with codes of 4 or 8 bits.

    Blocks are whole rows, parts of rows, or of neighbouring rows.
    """
    form = matrix.form
    if not chip or dtype != jnp.bfloat16 or chip.startswith(WITHOUT_BFLOAT16) or matrix.codes.dtype != form.held:
        return False
    if form.bits not in (4, 8) or form.step > 1 or form.block[1] == 1:
        return False
    if (form.bits == 8 and form.table) or (values_of(form) and chip.startswith(WITHOUT_TABLES)):
        return False
    if form.shift == "offset" and matrix.factors is not None:  # factors multiply the result, offsets too
        return False
    width = matrix.codes.shape[-1] // blocks_of(matrix)
    even = LANES % width == 0 or width % LANES == 0
    return even and fits(matrix) and _padded(rows) * max(LANES // width, 1) <= MOST


def multiply(x_MI: jax.Array, matrix: Any, *, interpret: bool = False) -> jax.Array:
    """Returns rows times the transpose of a matrix [O, I], for which `takes` is true: [M, O]."""
    if matrix.factors is None:
        return _of_codes(x_MI, matrix, x_MI.dtype, interpret=interpret)
    return (_of_codes(x_MI, matrix, jnp.float32, interpret=interpret) * matrix.factors).astype(x_MI.dtype)


def _of_codes(x_MI: jax.Array, matrix: Any, dtype: Any, *, interpret: bool) -> jax.Array:
    """Returns the product without factors."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    M, rows, form, S = x_MI.shape[0], _padded(x_MI.shape[0]), matrix.form, blocks_of(matrix)
    codes_OW, *numbers = in_hbm(matrix.codes, *numbers_of(matrix), interpret=interpret)
    outputs, W = codes_OW.shape
    x_PMW, table, (tall, wide) = by_places(x_MI, rows, form), table_of(form), tile_of(matrix)
    stays = x_PMW.nbytes <= KEPT
    y_MO = pl.pallas_call(
        partial(_kernel, width=W // S, form=form),
        grid=(pl.cdiv(outputs, tall), W // wide),
        in_specs=[
            pl.BlockSpec(table.shape, lambda i, j: (0, 0)),
            pl.BlockSpec((form.per_byte, rows, W if stays else wide), lambda i, j: (0, 0, 0 if stays else j)),
            pl.BlockSpec((tall, wide), lambda i, j: (i, j)),
            *[pl.BlockSpec((S, tall), lambda i, j: (0, i)) for _ in numbers],
        ],
        out_specs=pl.BlockSpec((rows, tall), lambda i, j: (0, i)),
        out_shape=jax.ShapeDtypeStruct((rows, outputs), dtype),
        scratch_shapes=scratch(rows, tall, S, form),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * form.per_byte * rows * outputs * W,
            transcendentals=0,
            bytes_accessed=codes_OW.nbytes
            + sum(part.nbytes for part in numbers)
            + x_PMW.nbytes * (1 if stays else pl.cdiv(outputs, tall))
            + rows * outputs * jnp.dtype(dtype).itemsize,
        ),
        interpret=interpret,
    )(table, x_PMW, codes_OW, *numbers)
    return y_MO[:M]


def in_hbm(*arrays: jax.Array, interpret: bool) -> tuple[jax.Array, ...]:
    """Keeps arrays in HBM: XLA would copy some to fast memory, from where the Pallas kernel would copy them again."""
    from jax.experimental.pallas import tpu as pltpu

    if interpret:
        return arrays
    return tuple(pltpu.with_memory_space_constraint(array, pltpu.MemorySpace.HBM) for array in arrays)


def _kernel(table: Any, x_PMW: Any, codes_OW: Any, *others: Any, width: int, form: Form) -> None:
    """Adds up the products of a tile; the others are its scales, perhaps shifts, the result, and scratch memory."""
    from jax.experimental import pallas as pl

    numbers, (y_MO, scales_HSO, sums_HMO, *shifts_HSO) = split_off(others, form)
    column, wide = pl.program_id(1), codes_OW.shape[1]

    @pl.when(column == 0)
    def start() -> None:
        sums_HMO[...] = jnp.zeros_like(sums_HMO)
        take_numbers(numbers, (scales_HSO, *shifts_HSO))

    def inputs(place: int, first: int) -> jax.Array:
        start = pl.multiple_of(column * wide + first, LANES) if x_PMW.shape[2] > wide else first
        return x_PMW[place, :, pl.ds(start, LANES)].astype(jnp.float32)

    found = products(inputs, codes_OW, scales_HSO, *shifts_HSO, table=table, column=column, width=width, form=form)
    for parity, sums in enumerate(found):
        sums_HMO[parity] += sums

    @pl.when(column == pl.num_programs(1) - 1)
    def end() -> None:
        put_together(sums_HMO, y_MO)


def _padded(rows: int) -> int:
    return -(-rows // 8) * 8
