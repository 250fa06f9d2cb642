"""Rows of hashed tables for the last tokens: products of 64 bits, in pieces that JAX has without its 64-bit mode."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

MASK, LIMBS, BITS = (1 << 64) - 1, 4, 16
# B batch, T length, H tables. A number of 64 bits is four arrays of 16 bits each, from the lowest.
Limbs = list[jax.Array]


def hashed(tokens: Sequence[jax.Array], factors: Sequence[int], sizes: Sequence[int]) -> jax.Array:
    """Returns (token 0 * factor 0 xor token 1 * factor 1 xor ...) modulo each of `sizes`, [B, T, H].

    Tokens are non-negative integers [B, T], factors are below 2 ** 64, and sizes below 2 ** 28.
    """
    mixed = _product(tokens[0], factors[0])
    for token, factor in zip(tokens[1:], factors[1:], strict=True):
        mixed = [one ^ other for one, other in zip(mixed, _product(token, factor), strict=True)]
    return _remainder(mixed, np.asarray(sizes, np.uint32))


def _product(token_BT: jax.Array, factor: int) -> Limbs:
    """Returns a token times a factor, modulo 2 ** 64."""
    token = token_BT.astype(jnp.uint32)
    own = [token & 0xFFFF, token >> BITS]
    theirs = [factor >> (BITS * limb) & 0xFFFF for limb in range(LIMBS)]
    found, carry = [], jnp.zeros_like(token)
    for limb in range(LIMBS):
        products = [own[i] * jnp.uint32(theirs[limb - i]) for i in range(min(2, limb + 1))]
        low = carry + sum((product & 0xFFFF for product in products), jnp.zeros_like(token))
        found.append(low & 0xFFFF)
        carry = (low >> BITS) + sum((product >> BITS for product in products), jnp.zeros_like(token))
    return found


def _remainder(limbs: Limbs, sizes_H: np.ndarray) -> jax.Array:
    """Returns a number modulo each size, four bits at a time: a remainder times 16 has to stay below 2 ** 32."""
    rest = jnp.zeros((*limbs[0].shape, len(sizes_H)), jnp.uint32)
    for limb in reversed(limbs):
        for shift in range(BITS - 4, -1, -4):
            rest = ((rest << 4) | ((limb >> shift) & 0xF)[..., None]) % sizes_H
    return rest.astype(jnp.int32)


def splitmix64(value: int) -> int:
    """Returns the number that SplitMix64 (Steele et al. 2014, doi:10.1145/2660193.2660195) makes of a state."""
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def primes_from(start: int, count: int) -> list[int]:
    """Returns the first `count` primes from `start` on."""
    found: list[int] = []
    while len(found) < count:
        if start > 1 and all(start % divisor for divisor in range(2, math.isqrt(start) + 1)):
            found.append(start)
        start += 1
    return found
