"""The selective scan of Mamba (Gu & Dao 2023, arXiv:2312.00752), in memory that does not grow with the length.

State s of channel i: h_t = exp(step_t a) h_(t-1) + step_t b_t x_t, and y_t = sum over s of c_t h_t. Everything is
float32: errors of the decay multiply up over the sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

# B batch, T length, L length of a chunk, S states, I channels
CHUNK = 64  # states exist for this many tokens at a time
Parts = tuple[jax.Array, ...]
State = TypeVar("State")


def selective_scan(
    x_BTI: jax.Array, step_BTI: jax.Array, a_SI: jax.Array, b_BTS: jax.Array, c_BTS: jax.Array, state_BSI: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns outputs [B, T, I] and the state after the last token. A token with zero step and x does not change it."""
    return over_chunks(
        lambda state, parts: _chunk(a_SI, state, parts), state_BSI, (x_BTI, step_BTI, b_BTS, c_BTS), CHUNK
    )


def over_chunks(
    chunk: Callable[[State, Any], tuple[jax.Array, State]], state: State, parts: Any, size: int
) -> tuple[jax.Array, State]:
    """Returns outputs [B, T, ...] and the last state of `chunk(state, parts)`, called for `size` tokens at a time.

    `parts` is a tree of arrays [B, T, ...]. The last chunk is filled with zeros, which must not change the state.
    """
    batch, length = jax.tree.leaves(parts)[0].shape[:2]
    if length <= size:
        return chunk(state, parts)

    def chunked(part: jax.Array) -> jax.Array:
        padded = jnp.pad(part, ((0, 0), (0, -length % size), *((0, 0) for _ in part.shape[2:])))
        return padded.reshape(batch, -1, size, *part.shape[2:]).swapaxes(0, 1)

    def body(state: State, part: Any) -> tuple[State, jax.Array]:
        y, state = chunk(state, part)
        return state, y

    # the backward pass keeps one state for each chunk and recomputes the others
    state, y = jax.lax.scan(jax.checkpoint(body), state, jax.tree.map(chunked, parts))
    y = y.swapaxes(0, 1)
    return y.reshape(batch, -1, *y.shape[3:])[:, :length], state


def _chunk(a_SI: jax.Array, state_BSI: jax.Array, parts: Parts) -> tuple[jax.Array, jax.Array]:
    if parts[0].shape[1] == 1:
        return token_by_token(a_SI, state_BSI, *parts)
    # on CPUs the parallel scan is 15 times slower; on accelerators every step of a loop costs a launch
    return jax.lax.platform_dependent(a_SI, state_BSI, *parts, cpu=token_by_token, default=in_parallel)


def token_by_token(
    a_SI: jax.Array, state_BSI: jax.Array, x: jax.Array, step: jax.Array, b: jax.Array, c: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def one(state_BSI: jax.Array, token: Parts) -> tuple[jax.Array, jax.Array]:
        x_BI, step_BI, b_BS, c_BS = token
        state_BSI = jnp.exp(step_BI[:, None] * a_SI) * state_BSI + b_BS[:, :, None] * (step_BI * x_BI)[:, None]
        return state_BSI, jnp.einsum("BSI,BS->BI", state_BSI, c_BS)

    tokens = tuple(part.swapaxes(0, 1) for part in (x, step, b, c))
    state_BSI, y_TBI = jax.lax.scan(one, state_BSI, tokens)
    return y_TBI.swapaxes(0, 1), state_BSI


def in_parallel(
    a_SI: jax.Array, state_BSI: jax.Array, x: jax.Array, step: jax.Array, b: jax.Array, c: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def after(first: tuple[jax.Array, jax.Array], second: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return first[0] * second[0], second[0] * first[1] + second[1]

    decay_BLSI = jnp.exp(step[:, :, None] * a_SI)
    input_BLSI = b[..., None] * (step * x)[:, :, None]
    decay_BLSI, made_BLSI = jax.lax.associative_scan(after, (decay_BLSI, input_BLSI), axis=1)
    states_BLSI = decay_BLSI * state_BSI[:, None] + made_BLSI
    return jnp.einsum("BLSI,BLS->BLI", states_BLSI, c), states_BLSI[:, -1]
