"""Pairs of a token and one of its choices, brought into an order and back, without XLA's sorts and sums by index.

On TPUs a sort of 65,536 numbers takes the compiler a minute, and a sum by index is done row after row.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# N tokens, K choices of each, M pairs of both, S places, D features, G numbers that pairs are ordered by
BLOCK = 256  # pairs that are counted by one product; bfloat16 holds all counts up to it


def in_order(number_M: jax.Array, numbers: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the pairs in the order of their numbers (0 to `numbers`), each one's position, and how many each has.

    Pairs of equal numbers stay in their order. The highest number stands for none: it has no count.
    """
    order_M, position_M, sizes = jax.lax.platform_dependent(
        number_M,
        tpu=lambda number_M: by_counting(number_M, numbers),
        default=lambda number_M: by_sorting(number_M, numbers),
    )
    return order_M, position_M, sizes[:numbers]


def by_sorting(number_M: jax.Array, numbers: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    order_M = jnp.argsort(number_M).astype(jnp.int32)
    return order_M, _inverse(order_M), jnp.bincount(number_M, length=numbers + 1).astype(jnp.int32)


def by_counting(number_M: jax.Array, numbers: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    pairs = number_M.shape[0]
    blocks = jnp.pad(number_M, (0, -pairs % BLOCK), constant_values=numbers).reshape(-1, BLOCK)
    is_G = blocks[..., None] == jnp.arange(numbers + 1)
    earlier = jnp.tril(jnp.ones((BLOCK, BLOCK), jnp.bfloat16), -1)
    within = jnp.einsum("ij,bjg->big", earlier, is_G.astype(jnp.bfloat16), preferred_element_type=jnp.bfloat16)
    counts = jnp.sum(is_G, axis=1, dtype=jnp.int32)
    sizes = jnp.sum(counts, axis=0, dtype=jnp.int32)
    start = jnp.cumsum(counts, axis=0) - counts + (jnp.cumsum(sizes) - sizes)
    position = jnp.sum(jnp.where(is_G, within.astype(jnp.int32) + start[:, None], 0), axis=-1, dtype=jnp.int32)
    position_M = position.reshape(-1)[:pairs]
    return _inverse(position_M), position_M, sizes


def _inverse(order_M: jax.Array) -> jax.Array:
    numbers = jnp.arange(order_M.shape[0], dtype=jnp.int32)
    return jnp.zeros_like(numbers).at[order_M].set(numbers, unique_indices=True)


def at(rows: jax.Array, index: jax.Array, otherwise: Any) -> jax.Array:
    """Returns rows by number, and `otherwise` for numbers beyond all."""
    return rows.at[index].get(mode="fill", fill_value=otherwise)


@jax.custom_vjp
def sent(x_ND: jax.Array, pair_S: jax.Array, place_NK: jax.Array) -> jax.Array:
    """Returns the token of the pair in each place, [S, D]; `place_NK` are the places of all pairs."""
    return at(x_ND, pair_S // place_NK.shape[1], 0)


@jax.custom_vjp
def summed(y_SD: jax.Array, pair_S: jax.Array, place_NK: jax.Array) -> jax.Array:
    """Returns the sum of what is in each token's places, [N, D] in float32."""
    return sum((at(y_SD, place_N, 0).astype(jnp.float32) for place_N in place_NK.T), start=jnp.float32(0))


@jax.custom_vjp
def permuted(rows_MD: jax.Array, order_M: jax.Array, position_M: jax.Array) -> jax.Array:
    """Returns rows in another order, of which `position_M` is the inverse."""
    return jnp.take(rows_MD, order_M, axis=0, mode="clip")


def _keeping(function: Any) -> Any:
    return lambda rows, *places: (function(rows, *places), (places, jnp.zeros((0,), rows.dtype)))


def _by(transposed: Any) -> Any:
    """Returns the gradient of a function by its transpose: look-ups, where XLA would add up by index."""

    def backward(saved: Any, dy: jax.Array) -> tuple[jax.Array, Any, Any]:
        places, like = saved
        return (transposed(dy.astype(like.dtype), *places).astype(like.dtype), *map(no_gradient, places))

    return backward


def no_gradient(integers: jax.Array) -> np.ndarray:
    """Returns the gradient by whole numbers."""
    return np.zeros(integers.shape, jax.dtypes.float0)


sent.defvjp(_keeping(sent), _by(summed))
summed.defvjp(_keeping(summed), _by(sent))
permuted.defvjp(_keeping(permuted), _by(lambda rows, order_M, position_M: permuted(rows, position_M, order_M)))
