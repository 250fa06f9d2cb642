"""Tiles of a matrix of 4-bit or 8-bit codes in a Pallas kernel for TPUs, multiplied with a few rows.

A chip's vector unit would make and scale floats of codes more slowly than its memory gives them. Here it makes unscaled
ones. The matrix unit has room for more rows, so each row of inputs is multiplied once for each block, with zeros
outside of it, and scales multiply the results, of which there are fewer than codes. Where blocks have a zero or an
offset, too, these multiply the sums of the block's inputs.

Codes of 4 bits become floats two at a time: a code set into the lowest bits of a bfloat16 gives a number that is the
code and a constant. Codes into a table are looked up in registers: a word of eight entries has two of them, which a
code's highest bit chooses from. As two rows of the matrix share a word, even and odd ones are computed apart, and put
together at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from easydel.forms import FP4, Form

# M rows of inputs, O rows of the matrix, S blocks of a row, P codes in a byte, H parity of a row of the matrix, if
# there are two codes in a byte
LANES = 128
TALL, WIDE = 512, 1024  # the most rows of the matrix, and bytes of them, in a tile
# The most bytes of a tile's scales and shifts in fast memory (16 MiB on v5e): twice, and once more in float32.
SCALES = 9 << 20
CODES = 0x000F000F  # the bits of two codes in a word of 32 bits
# The exclusive or of a code and these, 128 and 136 in each half, is a bfloat16: the code and as much.
UNSIGNED, SIGNED = 0x43004300, 0x43084308
ENTRIES = 8  # of a table that a TPU looks up at once: the rows of a register


def fits(matrix: Any) -> bool:
    """True if a matrix can be cut into tiles."""
    return matrix.codes.shape[-1] % LANES == 0 and _tall(matrix) > 0


def tile_of(matrix: Any) -> tuple[int, int]:
    """Returns the rows of a tile, and the bytes of each, of a matrix that `fits`."""
    return _tall(matrix), _tile(matrix.codes.shape[-1], LANES, WIDE)


def blocks_of(matrix: Any) -> int:
    """Returns how many blocks a row of a matrix has."""
    return 1 if matrix.by_rows else matrix.scales.shape[-1]


def _tall(matrix: Any) -> int:
    """Returns the rows of a tile, whose scales and shifts are all in fast memory; 0 if there is no such tile.

    The last tile of 8-bit codes may stand out over the end, with rows of no meaning; two 4-bit ones share a word.
    """
    parts = [part for part in (matrix.scales, matrix.shifts) if part is not None]
    each = blocks_of(matrix) * sum(2 * known(part.dtype).itemsize + 4 for part in parts)
    outputs, most = matrix.codes.shape[-2], min(TALL, SCALES // each // (2 * LANES) * 2 * LANES)
    if most and (outputs == LANES or outputs % (2 * LANES) == 0):
        return _tile(outputs, 2 * LANES, most)
    return most if matrix.form.bits == 8 and outputs > TALL else 0


def _tile(size: int, step: int, most: int) -> int:
    return size if size <= most else max(part for part in range(step, most + 1, step) if size % part == 0)


def by_places(x_MI: jax.Array, rows: int, form: Form) -> jax.Array:
    """Returns inputs filled up to so many rows, for each place in a byte those of its columns: [P, rows, W]."""
    return jnp.moveaxis(jnp.pad(x_MI, ((0, rows - x_MI.shape[0]), (0, 0))).reshape(rows, -1, form.per_byte), 2, 0)


def numbers_of(matrix: Any, *, scaled: bool = True) -> list[jax.Array]:
    """Returns the scales of each row's blocks, or ones unless they are to be `scaled`, and the shifts: [..., S, O]."""

    def of_rows(part: jax.Array) -> jax.Array:
        height = matrix.form.block[0]
        part_OS = part[..., None] if matrix.by_rows else part if height == 1 else jnp.repeat(part, height, axis=-2)
        return jnp.swapaxes(part_OS.astype(known(part.dtype)), -2, -1)

    scales = matrix.scales if scaled else jnp.ones_like(matrix.scales)
    return [of_rows(part) for part in (scales, matrix.shifts) if part is not None]


def scratch(rows: int, tall: int, blocks: int, form: Form) -> list[Any]:
    """Returns the memory for scales, sums, and perhaps shifts of a tile's even and odd rows, or of all its rows."""
    from jax.experimental.pallas import tpu as pltpu

    sizes = (blocks, rows, blocks) if form.shift else (blocks, rows)
    return [pltpu.VMEM((form.per_byte, size, tall // form.per_byte), jnp.float32) for size in sizes]


def split_off(arrays: tuple[Any, ...], form: Form) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Splits a kernel's last arrays into the numbers of blocks, scales and perhaps shifts, and the others."""
    count = 2 if form.shift else 1
    return arrays[:count], arrays[count:]


def take_numbers(numbers: Iterable[Any], memory: Iterable[Any]) -> None:
    """Puts the scales and perhaps shifts of a tile's even and odd rows, or of all its rows, into scratch memory."""
    for part_SO, part_HSO in zip(numbers, memory, strict=True):
        _take(part_SO, part_HSO)


def _take(part_SO: Any, part_HSO: Any) -> None:
    tall = part_SO.shape[-1]
    if part_HSO.shape[0] == 1:
        part_HSO[0] = part_SO[...].astype(jnp.float32)
        return
    together = min(tall, 2 * LANES)
    picks = [_of_parity(together, parity) for parity in (0, 1)]
    for parity, part in product((0, 1), range(0, tall, together)):
        half = slice(part // 2, (part + together) // 2)
        part_HSO[parity, :, half] = _picked(part_SO[:, part : part + together], picks[parity], 1)


def products(
    inputs: Callable[[int, int], jax.Array],
    codes_OW: Any,
    scales_HSO: Any,
    shifts_HSO: Any = None,
    *,
    table: Any,
    column: Any,
    width: int,
    form: Form,
) -> list[jax.Array]:
    """Returns the scaled products of rows with the even and the odd rows of a tile, [M, O / 2] each, or with all rows.

    `inputs` gives, for a place in the byte, the rows [M, LANES] at `LANES` bytes of the tile from one on, in float32.
    The tile is number `column` of its rows, and blocks are of `width` bytes: some in `LANES`, or some times as many.
    """
    from jax.experimental import pallas as pl

    of_lanes = _products_of_bytes if form.per_byte == 1 else _products_of_halves(form, table)
    wide, sums = codes_OW.shape[-1], [jnp.zeros((), jnp.float32)] * form.per_byte
    for first in range(0, wide, LANES):
        rows = [inputs(place, first) for place in range(form.per_byte)]
        count, own = rows[0].shape[0], [_once_for_each_block(part, width) for part in rows]
        inputs_M1 = jnp.sum(sum(own), axis=1, keepdims=True)
        for parity, z in enumerate(of_lanes(own, inputs_M1, codes_OW[:, first : first + LANES])):
            for block in range(max(LANES // width, 1)):
                at = pl.ds(jax.lax.div(column * wide + first, width) + block, 1)
                here = slice(block * count, (block + 1) * count)
                part, shift = z[here], inputs_M1[here] * shifts_HSO[parity, at, :] if form.shift else 0.0
                if form.shift == "zero":
                    part, shift = part - shift, 0.0
                sums[parity] += part * scales_HSO[parity, at, :] + shift
    return sums


def _products_of_bytes(rows: list[jax.Array], _: jax.Array, codes_OL: jax.Array) -> list[jax.Array]:
    return [_times(rows[0].astype(jnp.bfloat16), codes_OL.astype(jnp.bfloat16), 1)]


def _products_of_halves(form: Form, table: Any) -> Callable[[list[jax.Array], jax.Array, jax.Array], list[jax.Array]]:
    from jax.experimental.pallas import tpu as pltpu

    floats, lift = _floats_of(form, table)

    def products(rows: list[jax.Array], inputs_M1: jax.Array, codes_OL: jax.Array) -> list[jax.Array]:
        # a word has the bytes of four rows: of an even and an odd one in each half
        words, found = pltpu.bitcast(codes_OL, jnp.int32), []
        for parity in (0, 1):
            z = -lift * inputs_M1 if lift else 0.0
            for place in (0, 1):
                two = pltpu.bitcast(floats(words, 8 * parity + 4 * place), jnp.bfloat16)
                z += _times(rows[place].astype(jnp.bfloat16), two, 1)
            found.append(z)
        return found

    return products


def put_together(sums_HMO: Any, y_MO: Any) -> None:
    """Writes sums, those of even and odd rows of the matrix in the order of its rows."""
    tall = y_MO.shape[-1]
    if sums_HMO.shape[0] == 1:
        y_MO[...] = sums_HMO[0].astype(y_MO.dtype)
        return
    together = min(tall, 2 * LANES)
    picks = [_of_parity(together, parity) for parity in (0, 1)]
    for part in range(0, tall, together):
        half = slice(part // 2, (part + together) // 2)
        own = [sums_HMO[parity, :, half].astype(y_MO.dtype) for parity in (0, 1)]
        both = _picked(own[0], picks[0], 0) + _picked(own[1], picks[1], 0)
        y_MO[:, part : part + together] = both.astype(y_MO.dtype)


def known(dtype: Any) -> np.dtype:
    """Returns the dtype that has these scales as numbers that a TPU computes with, exactly."""
    short = dtype == jnp.bfloat16 or (jnp.issubdtype(dtype, jnp.floating) and np.dtype(dtype).itemsize == 1)
    return np.dtype(jnp.bfloat16 if short else jnp.float32)


def values_of(form: Form) -> tuple[float, ...]:
    """Returns the values of the codes from 0 on, where they are no integers."""
    return tuple(np.arange(16, dtype=np.uint8).view(FP4).astype(float).tolist()) if form.code == FP4 else form.table


def _has_signs(values: tuple[float, ...]) -> bool:
    """True if the highest bit of a code is a sign."""
    return all(high == -low for low, high in zip(values[:ENTRIES], values[ENTRIES:], strict=True))


def table_of(form: Form) -> jax.Array:
    """Returns words [8, LANES] of two bfloat16 values: of codes n and n + 8, or twice of n, where these have signs.

    Codes of 8 bits have none.
    """
    if form.bits == 8:
        return jnp.zeros((ENTRIES, LANES), jnp.int32)
    halves = np.asarray(values_of(form) or range(16), ml_dtypes.bfloat16).view(np.uint16).astype(np.uint32)
    low, high = halves[:ENTRIES], halves[:ENTRIES] if _has_signs(values_of(form)) else halves[ENTRIES:]
    return jnp.asarray(np.repeat((low | high << 16).view(np.int32)[:, None], LANES, axis=1))


def _floats_of(form: Form, table: Any) -> tuple[Callable[[jax.Array, int], jax.Array], float]:
    """Returns a function that makes bfloat16 numbers of codes, and the constant that it adds to them.

    The function takes words of 32 bits, and the first of a code's four bits in the lower half. It makes two numbers of
    each word: of that code, and of the one at the same place in the upper half.
    """
    if not (values := values_of(form)):
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
        return joined(looked_up(low), looked_up(high)) ^ ((low & 0x00080008) << 12)

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


def _once_for_each_block(x: jax.Array, width: int) -> jax.Array:
    """Returns `x` [M, LANES] once for each block of `width` columns, with zeros outside of it: [blocks * M, LANES]."""
    if width >= LANES:
        return x
    block = jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, x.shape, 1), width)
    return jnp.concatenate([jnp.where(block == one, x, 0.0) for one in range(LANES // width)], axis=0)
