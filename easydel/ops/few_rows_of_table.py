"""Look-ups of a few rows in a table on a TPU, by Pallas kernels that read the tiles they are in, and nothing else.

XLA copies a table of bytes into another order to take one row out of it, and one of narrow rows to take several; it
makes other numbers of a whole table of float8; and whatever fits into fast memory it fetches as a whole. Other tables
of 16 or 32 bits, as most models have, it looks up well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from easydel.ops.few_rows import in_hbm

# N rows to look up, W numbers of a row, V words of 32 bits that have them
MOST = 64  # rows; of more, the tiles are many times what is wanted
WIDEST = 1 << 16  # numbers in a row of tiles: twice as many do not fit into fast memory
LANES = 128  # numbers beside each other in a tile
WORDS = 8  # words above each other in a tile


def takes(rows: int, table: Any) -> bool:
    """True if a kernel is to look so many rows up: if it can, in less than half of a table that XLA would copy."""
    (R, W), tall = table.shape, _tall(table)
    if table.dtype == jnp.float16 or not 0 < rows <= MOST:
        return False
    if W % LANES == 0:
        return table.dtype.itemsize == 1 and W <= WIDEST and 2 * rows * tall < R
    transposed = -W % LANES * R > 2 * (-R % LANES * W)
    return transposed and W % (tall // WORDS) == 0 and tall * WIDEST >= LANES * W and 2 * rows * LANES < R


def look_up(table_RW: jax.Array, index: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Returns the bits of the rows with numbers `index`, all of which are in the table: unsigned, [*index, W].

    XLA stores a table transposed if that leaves less of its tiles empty.
    """
    kind = jnp.dtype(f"uint{8 * table_RW.dtype.itemsize}")
    if table_RW.shape[1] % LANES:
        words_NV = _columns(table_RW.T, index.reshape(-1), interpret=interpret)
        bits = jax.lax.bitcast_convert_type(words_NV, kind)
    else:
        bits = _rows(table_RW, index.reshape(-1), interpret=interpret).astype(kind)
    return bits.reshape(*index.shape, table_RW.shape[1])


def _rows(table_RW: jax.Array, index_N: jax.Array, *, interpret: bool) -> jax.Array:
    """Returns rows, each number in the lowest bits of a word."""
    N, W, tall = index_N.size, table_RW.shape[1], _tall(table_RW)

    def kernel(index_N: Any, tile: Any, rows: Any) -> None:
        from jax.experimental import pallas as pl

        i, share = pl.program_id(0), tall // WORDS
        row = jax.lax.rem(index_N[i], tall)
        words_1W = tile.bitcast(jnp.int32)[pl.ds(jax.lax.div(row, share), 1), :]
        rows[pl.ds(jax.lax.rem(i, WORDS), 1), :] = words_1W >> (jax.lax.rem(row, share) * (32 // share))

    whole = (-(-N // WORDS) * WORDS, W)
    tiles = ((tall, W), lambda i, index_N: (jax.lax.div(index_N[i], tall), 0))
    rows = ((WORDS, W), lambda i, _: (jax.lax.div(i, WORDS), 0))
    return _call(kernel, table_RW, index_N, whole, tiles, rows, interpret=interpret)[:N]


def _columns(table_WR: jax.Array, index_N: jax.Array, *, interpret: bool) -> jax.Array:
    """Returns columns as rows of words, each of numbers that follow each other."""
    N, W, V = index_N.size, table_WR.shape[0], table_WR.shape[0] * table_WR.dtype.itemsize // 4

    def kernel(index_N: Any, tile: Any, columns: Any) -> None:
        from jax.experimental import pallas as pl
        from jax.experimental.pallas import tpu as pltpu

        i = pl.program_id(0)
        turn = jax.lax.rem(LANES + i - jax.lax.rem(index_N[i], LANES), LANES)
        own = jax.lax.broadcasted_iota(jnp.int32, columns.shape, 1) == i
        columns[...] = jnp.where(own, pltpu.roll(tile.bitcast(jnp.int32)[...], turn, 1), columns[...])

    tiles = ((W, LANES), lambda i, index_N: (0, jax.lax.div(index_N[i], LANES)))
    columns = ((V, LANES), lambda i, _: (0, 0))
    return _call(kernel, table_WR, index_N, (V, LANES), tiles, columns, interpret=interpret)[:, :N].T


Block = tuple[tuple[int, int], Callable[..., tuple[Any, Any]]]


def _call(
    kernel: Any,
    table: jax.Array,
    index_N: jax.Array,
    made: tuple[int, int],
    tiles: Block,
    out: Block,
    *,
    interpret: bool,
) -> jax.Array:
    """Runs a kernel for each number in `index_N`, with a tile of the table; returns words of the shape `made`."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    (table,) = in_hbm(table, interpret=interpret)
    (tall, wide), _ = tiles
    read = index_N.size * tall * wide * table.dtype.itemsize
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=index_N.shape,
            in_specs=[pl.BlockSpec(*tiles)],
            out_specs=pl.BlockSpec(*out),
        ),
        out_shape=jax.ShapeDtypeStruct(made, jnp.int32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        cost_estimate=pl.CostEstimate(flops=0, transcendentals=0, bytes_accessed=read + 4 * made[0] * made[1]),
        interpret=interpret,
    )(index_N.astype(jnp.int32), table)


def _tall(table: Any) -> int:
    """Returns the numbers above each other in a tile."""
    return WORDS * 4 // table.dtype.itemsize
