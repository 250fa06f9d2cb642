"""Products of a few rows with a matrix of 4-bit codes on a TPU, by a Pallas kernel.

A chip's vector unit would make and scale floats of codes more slowly than its memory gives them. Here it makes unscaled
ones, two by each operation: a code set into the lowest bits of a bfloat16 gives a number that is the code and a
constant. Codes into a table are looked up in registers: a word of eight entries has two of them, which a code's highest
bit chooses from. The matrix unit has room for more rows, so each row of inputs is multiplied once for each block, with
zeros outside of it, and scales multiply the results, of which there are fewer than codes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from easydel.forms import Form

# M rows of inputs, O rows of the matrix, W bytes of a row, S scales of a row, P codes in a byte, H parity of a row
LANES = 128
MOST = 256  # rows of inputs times blocks in `LANES` bytes: of more, the matrix unit takes longer than the memory
TALL, WIDE = 512, 1024  # the most rows of the matrix, and bytes of them, in a tile
KEPT = 1 << 20  # bytes of inputs that stay in fast memory; more are fetched again for each tile
CODES = 0x000F000F  # the bits of two codes in a word of 32 bits
# The exclusive or of a code and these, 128 and 136 in each half, is a bfloat16: the code and as much.
UNSIGNED, SIGNED = 0x43004300, 0x43084308
ENTRIES = 8  # of a table that a TPU looks up at once: the rows of a register
WITHOUT_TABLES = ("TPU v2", "TPU v3", "TPU v4")  # have no such look-up
FP4 = np.dtype(ml_dtypes.float4_e2m1fn)


def takes(rows: int, dtype: Any, matrix: Any, chip: str) -> bool:
    """True if the kernel can multiply so many rows: bfloat16 with codes of 4 bits, whose blocks are parts of rows.

    `matrix` is a `Coded` with two dimensions, and `chip` the kind of device, empty where that is no TPU.
    """
    form, codes_OW = matrix.form, matrix.codes
    if not chip or form.bits != 4 or form.block[1] == 1 or dtype != jnp.bfloat16 or matrix.by_rows:
        return False
    if _values(form) and chip in WITHOUT_TABLES:
        return False
    outputs, bytes_of_row = codes_OW.shape
    sized = outputs % (2 * LANES if outputs > TALL else LANES) == 0 and bytes_of_row % LANES == 0
    width = form.block[1] // form.per_byte
    return sized and form.block[0] == 1 and LANES % width == 0 and _padded(rows) * (LANES // width) <= MOST


def multiply(x_MI: jax.Array, matrix: Any, *, interpret: bool = False) -> jax.Array:
    """Returns rows times the transpose of a matrix [O, I], for which `takes` is true: [M, O]."""
    whole = matrix.shifts is None and matrix.factors is None
    dtype = x_MI.dtype if whole else jnp.float32
    y_MO = _of_codes(x_MI, matrix.codes, matrix.scales, matrix.form, dtype, interpret=interpret)
    if matrix.shifts is not None:
        shifts_OS = matrix.shifts.astype(jnp.float32)
        if matrix.form.shift == "zero":
            shifts_OS = -shifts_OS * matrix.scales.astype(jnp.float32)
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
    x_PMW = jnp.moveaxis(jnp.pad(x_MI, ((0, rows - M), (0, 0))).reshape(rows, W, 2), 2, 0)
    scales_SO = scales_OS.astype(_known(scales_OS.dtype)).T
    table = _table(form)
    if not interpret:  # where they are: else XLA fetches what it has room for, and the kernel fetches that again
        codes_OW, scales_SO = (
            pltpu.with_memory_space_constraint(array, pltpu.MemorySpace.HBM) for array in (codes_OW, scales_SO)
        )
    tall, wide = _tile(outputs, 2 * LANES, TALL), _tile(W, LANES, WIDE)
    stays = x_PMW.nbytes <= KEPT
    y_MO = pl.pallas_call(
        partial(_kernel, width=W // S, form=form),
        grid=(outputs // tall, W // wide),
        in_specs=[
            pl.BlockSpec(table.shape, lambda i, j: (0, 0)),
            pl.BlockSpec((2, rows, W if stays else wide), lambda i, j: (0, 0, 0 if stays else j)),
            pl.BlockSpec((tall, wide), lambda i, j: (i, j)),
            pl.BlockSpec((S, tall), lambda i, j: (0, i)),
        ],
        out_specs=pl.BlockSpec((rows, tall), lambda i, j: (0, i)),
        out_shape=jax.ShapeDtypeStruct((rows, outputs), dtype),
        scratch_shapes=[
            pltpu.VMEM((2, S, tall // 2), jnp.float32),
            pltpu.VMEM((2, rows, tall // 2), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=4 * rows * outputs * W,
            transcendentals=0,
            bytes_accessed=codes_OW.nbytes
            + scales_SO.nbytes
            + x_PMW.nbytes * (1 if stays else outputs // tall)
            + rows * outputs * jnp.dtype(dtype).itemsize,
        ),
        interpret=interpret,
    )(table, x_PMW, codes_OW, scales_SO)
    return y_MO[:M]


def _known(dtype: Any) -> Any:
    """Returns the dtype that has these scales as numbers that a TPU computes with, exactly."""
    if dtype in (jnp.bfloat16, jnp.float32):
        return dtype
    return jnp.bfloat16 if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize == 1 else jnp.float32


def _values(form: Form) -> tuple[float, ...]:
    """Returns the values of the codes from 0 on, where they are no integers."""
    return tuple(np.arange(16, dtype=np.uint8).view(FP4).astype(float).tolist()) if form.code == FP4 else form.table


def _has_signs(values: tuple[float, ...]) -> bool:
    """True if the highest bit of a code is a sign."""
    return all(high == -low for low, high in zip(values[:ENTRIES], values[ENTRIES:], strict=True))


def _table(form: Form) -> jax.Array:
    """Returns words [8, LANES] of two bfloat16 values: of codes n and n + 8, or twice of n, where these have signs."""
    halves = np.asarray(_values(form) or range(16), ml_dtypes.bfloat16).view(np.uint16).astype(np.uint32)
    low, high = halves[:ENTRIES], halves[:ENTRIES] if _has_signs(_values(form)) else halves[ENTRIES:]
    return jnp.asarray(np.repeat((low | high << 16).view(np.int32)[:, None], LANES, axis=1))


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
    """Adds up the products of a tile: in bytes of `LANES` columns, and of these in blocks of `width`.

    The last two arrays are scratch memory. Even and odd rows of the matrix are apart in them.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    column, rows, (tall, wide) = pl.program_id(1), x_PMW.shape[1], codes_OW.shape
    floats, lift = _floats_of(form, table)
    together = min(tall, 2 * LANES)

    @pl.when(column == 0)
    def start() -> None:
        sums_HMO[...] = jnp.zeros_like(sums_HMO)
        picks = [_of_parity(together, parity) for parity in (0, 1)]
        for parity, part in product((0, 1), range(0, tall, together)):
            half = slice(part // 2, (part + together) // 2)
            scales_HSO[parity, :, half] = _picked(scales_SO[:, part : part + together], picks[parity], 1)

    sums = [sums_HMO[0], sums_HMO[1]]
    for first in range(0, wide, LANES):
        here = pl.ds(pl.multiple_of(column * wide + first, LANES) if x_PMW.shape[2] > wide else first, LANES)
        own = [_apart(x_PMW[place, :, here].astype(jnp.float32), width) for place in (0, 1)]
        lifted = lift * jnp.sum(own[0] + own[1], axis=1, keepdims=True) if lift else 0.0
        # a word has the bytes of four rows: of an even and an odd one in each half
        words = pltpu.bitcast(codes_OW[:, first : first + LANES], jnp.int32)
        for parity in (0, 1):
            z = -lifted
            for place in (0, 1):
                two = pltpu.bitcast(floats(words, 8 * parity + 4 * place), jnp.bfloat16)
                z += _times(own[place].astype(jnp.bfloat16), two, 1)
            for block in range(LANES // width):
                scale = scales_HSO[parity, pl.ds(column * (wide // width) + first // width + block, 1), :]
                sums[parity] += z[block * rows : (block + 1) * rows] * scale
    sums_HMO[0], sums_HMO[1] = sums

    @pl.when(column == pl.num_programs(1) - 1)
    def end() -> None:
        picks = [_of_parity(together, parity) for parity in (0, 1)]
        for part in range(0, tall, together):
            half = slice(part // 2, (part + together) // 2)
            own = [sums_HMO[parity, :, half].astype(y_MO.dtype) for parity in (0, 1)]
            both = _picked(own[0], picks[0], 0) + _picked(own[1], picks[1], 0)
            y_MO[:, part : part + together] = both.astype(y_MO.dtype)


def _floats_of(form: Form, table: Any) -> tuple[Callable[[jax.Array, int], jax.Array], float]:
    """Returns what makes two bfloat16 numbers of the codes at some bits of each half of a word, and what they are more.

    The functions are of words and the first of these bits.
    """
    if not (values := _values(form)):
        lift, bits = (136.0, SIGNED) if jnp.issubdtype(form.code, jnp.signedinteger) else (128.0, UNSIGNED)
        return lambda words, bit: (words >> bit) & CODES ^ bits, lift

    def looked_up(codes: jax.Array) -> jax.Array:
        parts = (codes[row : row + ENTRIES] & 7 for row in range(0, codes.shape[0], ENTRIES))
        found = [jnp.take_along_axis(table[...], part, axis=0, mode="promise_in_bounds") for part in parts]
        return jnp.concatenate(found, axis=0)

    def joined(low: jax.Array, high: jax.Array) -> jax.Array:
        return (low & 0xFFFF) | (high & -0x10000)

    def with_signs(words: jax.Array, bit: int) -> jax.Array:
        low, high = words >> bit, words >> (bit + 16)
        return joined(looked_up(low), looked_up(high)) | ((low & 0x00080008) << 12)

    def chosen(words: jax.Array, bit: int) -> jax.Array:
        low, high = words >> bit, words >> (bit + 16)
        own = jax.lax.shift_right_logical(looked_up(low), (low & 8) << 1)
        return joined(own, looked_up(high) << (16 - ((high & 8) << 1)))

    return with_signs if _has_signs(values) else chosen, 0.0


def _of_parity(places: int, parity: int) -> jax.Array:
    """Returns a matrix [places / 2, places] of 0 and 1, each row of which picks one of the even or the odd places."""
    shape = (places // 2, places)
    row, place = (jax.lax.broadcasted_iota(jnp.int32, shape, dim) for dim in (0, 1))
    return (place == 2 * row + parity).astype(jnp.float32).astype(jnp.bfloat16)


def _picked(x: jax.Array, picks: jax.Array, contracted: int) -> jax.Array:
    """Returns `x` times a matrix of 0 and 1, in float32 and exact: three bfloat16 numbers add up to one of float32."""
    if x.dtype == jnp.bfloat16:
        return _times(x, picks, contracted)
    total = jnp.zeros((), jnp.float32)
    for _ in range(3):
        part = x.astype(jnp.bfloat16)
        total, x = total + _times(part, picks, contracted), x - part.astype(jnp.float32)
    return total


def _times(x: jax.Array, matrix: jax.Array, contracted: int) -> jax.Array:
    return jax.lax.dot_general(x, matrix, (((1,), (contracted,)), ((), ())), preferred_element_type=jnp.float32)


def _apart(x: jax.Array, width: int) -> jax.Array:
    """Returns `x` [M, LANES] once for each block of `width` columns, with zeros outside of it: [blocks * M, LANES]."""
    if width == LANES:
        return x
    block = jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, x.shape, 1), width)
    return jnp.concatenate([jnp.where(block == one, x, 0.0) for one in range(LANES // width)], axis=0)


def _padded(rows: int) -> int:
    return -(-rows // 8) * 8


def _tile(size: int, step: int, most: int) -> int:
    return size if size <= most else max(part for part in range(step, most + 1, step) if size % part == 0)
