"""The recurrence of gated linear units (De et al. 2024, arXiv:2402.19427): h_t = exp(decay_t) h_(t-1) + x_t.

One state for each channel, in float32: errors of the decay multiply up over the sequence.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from easydel.ops.recurrence import CHUNK, Parts, over_chunks

# B batch, T length, L tokens of a chunk, I channels


def gated_scan(x_BTI: jax.Array, decay_BTI: jax.Array, state_BI: jax.Array) -> tuple[jax.Array, jax.Array]:
    """States after each token [B, T, I], and the last one [B, I]. A token of zeros leaves the state as it is."""
    return over_chunks(_chunk, state_BI, (x_BTI, decay_BTI), CHUNK)


def _chunk(state_BI: jax.Array, parts: Parts) -> tuple[jax.Array, jax.Array]:
    def after(first: Parts, second: Parts) -> Parts:
        return first[0] + second[0], jnp.exp(second[0]) * first[1] + second[1]

    x_BLI, decay_BLI = parts
    decay_BLI, made_BLI = jax.lax.associative_scan(after, (decay_BLI, x_BLI), axis=1)
    states_BLI = jnp.exp(decay_BLI) * state_BI[:, None] + made_BLI
    return states_BLI, states_BLI[:, -1]
