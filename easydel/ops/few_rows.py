"""Products of a few rows with a matrix of 4-bit or 8-bit codes on a TPU, by a Pallas kernel (`few_rows_tiles`)."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from easydel.forms import Form
from easydel.ops.few_rows_tiles import (
    LANES,
    by_places,
    fits,
    for_rows,
    known,
    products,
    put_together,
    scratch,
    table_of,
    take_scales,
    tile_of,
    values_of,
)

# M rows of inputs, O rows of the matrix, W bytes of a row, S scales of a row, P codes in a byte, H parity of a row
MOST = 256  # rows of inputs times blocks in `LANES` bytes: of more, the matrix unit takes longer than the memory
PLAIN = 64  # rows: with more, XLA's own product with bytes is as fast, if each row of the matrix has one scale
KEPT = 1 << 20  # bytes of inputs that stay in fast memory; more are fetched again for each tile
WITHOUT_TABLES = ("TPU v2", "TPU v3", "TPU v4")  # have no look-ups in registers


def takes(rows: int, dtype: Any, matrix: Any, chip: str) -> bool:
    """True if the kernel can multiply so many rows: bfloat16 with codes of 4 or 8 bits.

    Blocks are whole rows, parts of rows, or of neighbouring rows. `matrix` is a `Coded` with two dimensions, and `chip`
    the kind of device, empty where that is no TPU.
    """
    form, (outputs, bytes_of_row) = matrix.form, matrix.codes.shape
    if not chip or dtype != jnp.bfloat16 or form.bits not in (4, 8) or form.step > 1 or form.block[1] == 1:
        return False
    if (form.bits == 8 and form.table) or (values_of(form) and chip.startswith(WITHOUT_TABLES)):
        return False
    if form.bits == 8 and matrix.scales_outputs and rows > PLAIN:
        return False
    scales = 1 if matrix.by_rows else matrix.scales.shape[-1]
    width = bytes_of_row // scales
    even = LANES % width == 0 or width % LANES == 0
    blocks = max(LANES // width, 1)
    return fits(outputs, bytes_of_row, scales, matrix.scales.dtype) and even and _padded(rows) * blocks <= MOST


def multiply(x_MI: jax.Array, matrix: Any, *, interpret: bool = False) -> jax.Array:
    """Returns rows times the transpose of a matrix [O, I], for which `takes` is true: [M, O]."""
    whole = matrix.shifts is None and matrix.factors is None
    dtype = x_MI.dtype if whole else jnp.float32
    scales_OS = for_rows(matrix.scales, matrix)
    y_MO = _of_codes(x_MI, matrix.codes, scales_OS, matrix.form, dtype, interpret=interpret)
    if matrix.shifts is not None:
        shifts_OS = for_rows(matrix.shifts, matrix).astype(jnp.float32)
        if matrix.form.shift == "zero":
            shifts_OS = -shifts_OS * scales_OS.astype(jnp.float32)
        sums_MS = jnp.sum(x_MI.reshape(x_MI.shape[0], shifts_OS.shape[1], -1), axis=-1, dtype=jnp.float32)
        y_MO += jnp.einsum("MS,OS->MO", sums_MS, shifts_OS, precision=jax.lax.Precision.HIGHEST)
    return (y_MO if matrix.factors is None else y_MO * matrix.factors).astype(x_MI.dtype)


def _of_codes(
    x_MI: jax.Array, codes_OW: jax.Array, scales_OS: jax.Array, form: Form, dtype: Any, *, interpret: bool
) -> jax.Array:
    """Returns the product with codes times scales, without shifts."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    M, rows, outputs, W, S = x_MI.shape[0], _padded(x_MI.shape[0]), *codes_OW.shape, scales_OS.shape[1]
    x_PMW = by_places(x_MI, rows, form)
    scales_SO = scales_OS.astype(known(scales_OS.dtype)).T
    table = table_of(form)
    codes_OW, scales_SO = in_hbm(codes_OW, scales_SO, interpret=interpret)
    tall, wide = tile_of(outputs, W, S, scales_OS.dtype)
    stays = x_PMW.nbytes <= KEPT
    y_MO = pl.pallas_call(
        partial(_kernel, width=W // S, form=form),
        grid=(outputs // tall, W // wide),
        in_specs=[
            pl.BlockSpec(table.shape, lambda i, j: (0, 0)),
            pl.BlockSpec((form.per_byte, rows, W if stays else wide), lambda i, j: (0, 0, 0 if stays else j)),
            pl.BlockSpec((tall, wide), lambda i, j: (i, j)),
            pl.BlockSpec((S, tall), lambda i, j: (0, i)),
        ],
        out_specs=pl.BlockSpec((rows, tall), lambda i, j: (0, i)),
        out_shape=jax.ShapeDtypeStruct((rows, outputs), dtype),
        scratch_shapes=scratch(rows, tall, S, form),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * form.per_byte * rows * outputs * W,
            transcendentals=0,
            bytes_accessed=codes_OW.nbytes
            + scales_SO.nbytes
            + x_PMW.nbytes * (1 if stays else outputs // tall)
            + rows * outputs * jnp.dtype(dtype).itemsize,
        ),
        interpret=interpret,
    )(table, x_PMW, codes_OW, scales_SO)
    return y_MO[:M]


def in_hbm(*arrays: jax.Array, interpret: bool) -> tuple[jax.Array, ...]:
    """Keeps arrays in HBM: XLA would copy some to fast memory, from where the Pallas kernel would copy them again."""
    from jax.experimental.pallas import tpu as pltpu

    if interpret:
        return arrays
    return tuple(pltpu.with_memory_space_constraint(array, pltpu.MemorySpace.HBM) for array in arrays)


def _kernel(
    table: Any,
    x_PMW: Any,
    codes_OW: Any,
    scales_SO: Any,
    y_MO: Any,
    scales_HSO: Any,
    sums_HMO: Any,
    *,
    width: int,
    form: Form,
) -> None:
    """Adds up the products of a tile; the last two arrays are scratch memory."""
    from jax.experimental import pallas as pl

    column, wide = pl.program_id(1), codes_OW.shape[1]

    @pl.when(column == 0)
    def start() -> None:
        sums_HMO[...] = jnp.zeros_like(sums_HMO)
        take_scales(scales_SO, scales_HSO)

    def inputs(place: int, first: int) -> jax.Array:
        start = pl.multiple_of(column * wide + first, LANES) if x_PMW.shape[2] > wide else first
        return x_PMW[place, :, pl.ds(start, LANES)].astype(jnp.float32)

    for parity, sums in enumerate(products(inputs, codes_OW, scales_HSO, table, column, width=width, form=form)):
        sums_HMO[parity] += sums

    @pl.when(column == pl.num_programs(1) - 1)
    def end() -> None:
        put_together(sums_HMO, y_MO)


def _padded(rows: int) -> int:
    return -(-rows // 8) * 8
