"""Inverses of small triangular matrices by matrix products alone, many at a time.

A solver of linear algebra takes one matrix after the other, which on CPUs takes a hundred times as long.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

SMALL = 8  # blocks up to this size are multiplied number by number: a call for each would cost more
matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def unit_lower_inverse(a: jax.Array) -> jax.Array:
    """Returns the inverses [..., L, L] of the matrices with ones on the diagonal and below it what `a` has there.

    Of halves that are inverted, A and D, [[A, 0], [C, D]] has the inverse [[A', 0], [-D' C A', D']]. Blocks grow from
    single numbers by halves, so errors stay those of a substitution.
    """
    length, size = a.shape[-1], 1
    whole = 1 << max(length - 1, 0).bit_length()
    a = jnp.pad(a, [(0, 0)] * (a.ndim - 2) + [(0, whole - length)] * 2)
    inverse = jnp.ones((*a.shape[:-2], whole, 1, 1), a.dtype)  # [..., blocks, size, size]
    while size < whole:
        pairs = whole // (2 * size)
        blocks = a.reshape(*a.shape[:-2], pairs, 2, size, pairs, 2, size)[..., 1, :, :, 0, :]
        below = jnp.moveaxis(jnp.diagonal(blocks, axis1=-4, axis2=-2), -1, -3)
        upper, lower = inverse[..., ::2, :, :], inverse[..., 1::2, :, :]
        corner = -_product(_product(lower, below), upper)
        top = jnp.concatenate([upper, jnp.zeros_like(upper)], axis=-1)
        inverse = jnp.concatenate([top, jnp.concatenate([corner, lower], axis=-1)], axis=-2)
        size *= 2
    return inverse[..., 0, :length, :length]


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    if x.shape[-1] > SMALL:
        return matmul(x, y)
    return jnp.sum(x[..., None] * y[..., None, :, :], axis=-2)
