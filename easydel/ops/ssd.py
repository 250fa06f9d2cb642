"""The recurrence of Mamba 2 (Dao & Gu 2024, arXiv:2405.21060), whose decay is one number for each head and token.

State of a head, [channels, states]: h_t = exp(step_t a) h_(t-1) + step_t x_t b_t', and y_t = h_t c_t. The heads of a
group share b and c. Within a chunk that is attention without softmax, whose weights decay with distance: a few matrix
products. Everything is float32: errors of the decay multiply up over the sequence.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from easydel.ops.recurrence import CHUNK, Parts, over_chunks

# B batch, T length, L, M tokens of a chunk, G groups, R heads of a group, P channels of a head, S states
# these products cost a sixtieth of the projections around them, so a lower precision would save nothing
einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def state_space_dual(
    x_BTGRP: jax.Array, step_BTGR: jax.Array, a_GR: jax.Array, b_BTGS: jax.Array, c_BTGS: jax.Array, state: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns outputs [B, T, G, R, P] and the state [B, G, R, P, S] after the last token.

    A token with step zero leaves the state unchanged.
    """
    parts = (x_BTGRP, step_BTGR, b_BTGS, c_BTGS)
    if x_BTGRP.shape[1] == 1:
        return token_by_token(a_GR, state, *parts)
    return over_chunks(partial(_chunk, a_GR), state, parts, CHUNK)


def _chunk(a_GR: jax.Array, state_BGRPS: jax.Array, parts: Parts) -> tuple[jax.Array, jax.Array]:
    x_BLGRP, step_BLGR, b_BLGS, c_BLGS = parts
    input_BLGRP = x_BLGRP * step_BLGR[..., None]
    decay_BLGR = jnp.cumsum(step_BLGR * a_GR, axis=1)  # log of the share that remains of the state before the chunk
    decay_BGRL = jnp.moveaxis(decay_BLGR, 1, -1)
    apart_BGRLM = decay_BGRL[..., :, None] - decay_BGRL[..., None, :]
    # masked before the exponential, which would overflow for later tokens
    left_BGRLM = jnp.exp(jnp.where(jnp.tri(apart_BGRLM.shape[-1], dtype=bool), apart_BGRLM, -jnp.inf))
    scores_BGLM = einsum("BLGS,BMGS->BGLM", c_BLGS, b_BLGS)
    y_BLGRP = einsum("BGRLM,BMGRP->BLGRP", scores_BGLM[:, :, None] * left_BGRLM, input_BLGRP)
    y_BLGRP += einsum("BLGS,BGRPS->BLGRP", c_BLGS, state_BGRPS) * jnp.exp(decay_BLGR)[..., None]
    kept_BLGRP = input_BLGRP * jnp.exp(decay_BLGR[:, -1:] - decay_BLGR)[..., None]
    state_BGRPS = state_BGRPS * jnp.exp(decay_BGRL[..., -1])[..., None, None]
    return y_BLGRP, state_BGRPS + einsum("BLGS,BLGRP->BGRPS", b_BLGS, kept_BLGRP)


def token_by_token(
    a_GR: jax.Array, state: jax.Array, x: jax.Array, step: jax.Array, b: jax.Array, c: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Computes `state_space_dual` by its definition, which is also the quickest way for a single token."""

    def one(state_BGRPS: jax.Array, token: Parts) -> tuple[jax.Array, jax.Array]:
        x_BGRP, step_BGR, b_BGS, c_BGS = token
        input_BGRPS = (x_BGRP * step_BGR[..., None])[..., None] * b_BGS[:, :, None, None]
        state_BGRPS = state_BGRPS * jnp.exp(step_BGR * a_GR)[..., None, None] + input_BGRPS
        return state_BGRPS, jnp.sum(state_BGRPS * c_BGS[:, :, None, None], axis=-1)

    state, y = jax.lax.scan(one, state, tuple(part.swapaxes(0, 1) for part in (x, step, b, c)))
    return y.swapaxes(0, 1), state
