"""Products of rows with the matrix of their own group on a TPU, by jax's kernel (megablox).

XLA makes one fusion of `jax.lax.ragged_dot` that goes over all groups; the kernel skips the tiles without rows.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

# M rows sorted by group, E groups, O and I the two sides of each matrix
LANES = 128
ROWS = (128, 512)  # of a tile: fewer are no faster, more need too much fast memory beside the matrices' tiles
WIDEST = 1024  # of a tile of a matrix, for the same reason
WIDEST_SUM = 512  # of one that is kept in float32


def takes(x: jax.Array, kernel: Any) -> bool:
    """Returns whether the kernel can compute these products: in bfloat16, of matrices made of whole lanes.

    The matrices may be stored as float32, as in training.
    """
    floats = x.dtype == jnp.bfloat16 and getattr(kernel, "dtype", None) in (jnp.bfloat16, jnp.float32)
    return floats and all(dim % LANES == 0 for dim in kernel.shape[1:])


def product(
    x: jax.Array, kernel: jax.Array, sizes: jax.Array, *, contracted: int, interpret: bool = False
) -> jax.Array:
    """Returns rows times their matrices, contracted on their dimension `contracted`; rows of no group are undefined."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm

    tall = _rows(x.shape[0], kernel.shape[0])
    tiles = (tall, _tile(kernel.shape[contracted], WIDEST), _tile(kernel.shape[3 - contracted], WIDEST))
    given = (_padded(x, tall), kernel.astype(x.dtype), sizes.astype(jnp.int32), x.dtype, tiles)
    return gmm(*given, transpose_rhs=contracted == 2, interpret=interpret)[: x.shape[0]]


def outer(dy_MO: jax.Array, x_MI: jax.Array, sizes: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Returns the sum of outer products of each group's rows, [E, O, I] in float32."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    tall = _rows(x_MI.shape[0], sizes.shape[0])
    tiles = (tall, _tile(dy_MO.shape[1], WIDEST_SUM), _tile(x_MI.shape[1], WIDEST_SUM))
    dy_MO, x_MI = (_padded(rows, tall) for rows in (dy_MO, x_MI))
    return tgmm(dy_MO.T, x_MI, sizes.astype(jnp.int32), jnp.float32, tiles, interpret=interpret)


def _rows(rows: int, groups: int) -> int:
    """Returns the rows of a tile: about as many as a group has."""
    least, most = ROWS
    return min(max(least, 1 << (rows // groups).bit_length()), most)


def _tile(dim: int, widest: int) -> int:
    return max(size for size in range(LANES, widest + 1, LANES) if dim % size == 0)


def _padded(rows: jax.Array, tall: int) -> jax.Array:
    return jnp.pad(rows, ((0, -rows.shape[0] % tall), (0, 0)))
