"""The weighted average of RWKV-4 (Peng et al. 2023, arXiv:2305.13048), in memory that does not grow with the length.

Per channel, token t gets the average of the values v_i before it, with weights exp(k_i) that decay by exp(decay) with
each token after i, and of its own value with weight exp(first + k_t). Sums are kept divided by the exponential of the
largest exponent in them, in float32: weights have no bound.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from easydel.ops.recurrence import CHUNK, Parts, over_chunks

# B batch, T length, L tokens of a chunk, I channels
NOTHING = -1e38  # the exponent of a token without weight: smaller than any other, and finite
Sums = tuple[jax.Array, jax.Array, jax.Array]  # of weighted values, of weights, and the exponent both are divided by


def weighted_average(
    k_BTI: jax.Array, v_BTI: jax.Array, decay_BTI: jax.Array, first_I: jax.Array, sums_BI: Sums
) -> tuple[jax.Array, Sums]:
    """Returns averages [B, T, I] and the sums after the last token.

    `decay_BTI` are logarithms, not above zero. A token of exponent `NOTHING` and without decay leaves the sums as they
    are.
    """
    length = k_BTI.shape[1]
    fill = ((0, 0), (0, -length % CHUNK if length > CHUNK else 0), (0, 0))
    parts = (jnp.pad(k_BTI, fill, constant_values=NOTHING), jnp.pad(v_BTI, fill), jnp.pad(decay_BTI, fill))
    y_BTI, sums_BI = over_chunks(partial(_chunk, first_I), sums_BI, parts, CHUNK)
    return y_BTI[:, :length], sums_BI


def _chunk(first_I: jax.Array, sums_BI: Sums, parts: Parts) -> tuple[jax.Array, Sums]:
    if parts[0].shape[1] == 1:
        return token_by_token(first_I, sums_BI, *parts)
    # as in Mamba's scan: on CPUs the loop is faster, on accelerators each of its steps costs a launch
    return jax.lax.platform_dependent(first_I, sums_BI, *parts, cpu=token_by_token, default=in_parallel)


def token_by_token(
    first_I: jax.Array, sums_BI: Sums, k_BLI: jax.Array, v_BLI: jax.Array, decay_BLI: jax.Array
) -> tuple[jax.Array, Sums]:
    def one(sums_BI: Sums, token: Parts) -> tuple[Sums, jax.Array]:
        k_BI, v_BI, decay_BI = token
        return _added(_decayed(sums_BI, decay_BI), k_BI, v_BI), _average(_added(sums_BI, first_I + k_BI, v_BI))

    tokens = tuple(part.swapaxes(0, 1) for part in (k_BLI, v_BLI, decay_BLI))
    sums_BI, y_LBI = jax.lax.scan(one, sums_BI, tokens)
    return y_LBI.swapaxes(0, 1), sums_BI


def in_parallel(
    first_I: jax.Array, sums_BI: Sums, k_BLI: jax.Array, v_BLI: jax.Array, decay_BLI: jax.Array
) -> tuple[jax.Array, Sums]:
    def after(first: Parts, second: Parts) -> Parts:
        (decay, *sums), (further, *others) = first, second
        return decay + further, *_joined(
            _decayed((sums[0], sums[1], sums[2]), further), (others[0], others[1], others[2])
        )

    own = (decay_BLI, v_BLI, jnp.ones_like(v_BLI), k_BLI)
    decay_BLI, *made = jax.lax.associative_scan(after, own, axis=1)
    start = tuple(part[:, None] for part in sums_BI)
    sums_BLI = _joined(_decayed((start[0], start[1], start[2]), decay_BLI), (made[0], made[1], made[2]))
    before = [jnp.concatenate([first, part[:, :-1]], axis=1) for first, part in zip(start, sums_BLI, strict=True)]
    y_BLI = _average(_added((before[0], before[1], before[2]), first_I + k_BLI, v_BLI))
    return y_BLI, (sums_BLI[0][:, -1], sums_BLI[1][:, -1], sums_BLI[2][:, -1])


def _decayed(sums: Sums, decay: jax.Array) -> Sums:
    return sums[0], sums[1], sums[2] + decay


def _added(sums: Sums, k: jax.Array, v: jax.Array) -> Sums:
    return _joined(sums, (v, jnp.ones_like(v), k))


def _joined(one: Sums, other: Sums) -> Sums:
    exponent = jnp.maximum(one[2], other[2])
    mine, theirs = jnp.exp(one[2] - exponent), jnp.exp(other[2] - exponent)
    return mine * one[0] + theirs * other[0], mine * one[1] + theirs * other[1], exponent


def _average(sums: Sums) -> jax.Array:
    return sums[0] / sums[1]
