"""Attention over cached keys and values, one entry for every model.

Scores and softmax are float32. Never more than `CHUNK` queries' scores exist at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

# B batch, T queries, S keys, K kv heads, G query heads per kv head, C head channels, V value channels
Bias = jax.Array | Callable[[jax.Array | int, int], jax.Array]
CHUNK = 256
MASKED = -1e30  # finite, so that rows without any key (padding) stay free of NaN


@dataclass(frozen=True)
class Scores:
    """How scores become weights: scale, tanh cap (Gemma 2), a causal window in tokens, and matmul precision."""

    scale: float
    softcap: float | None = None
    window: int | None = None
    causal: bool = True
    precision: jax.lax.Precision | None = None


def attend(
    q_BTNC: jax.Array,
    k_BKSC: jax.Array,
    v_BKSV: jax.Array,
    scores: Scores,
    *,
    offset: jax.Array | int = 0,
    valid_BS: jax.Array | None = None,
    bias: Bias | None = None,
    sinks_N: jax.Array | None = None,
) -> jax.Array:
    """Weighted values [B, T, N, V] in the queries' dtype.

    Query t sits in key slot `offset` + t and sees slots up to its own (`scores.causal`), within the window, where
    `valid_BS`. `bias` [B or 1, N or 1, T or 1, S] is added to the scaled scores, or the part of it that a function
    of (first query, queries) returns. `sinks_N` is one more logit per head that takes weight and gives nothing.
    """
    B, T, N, C = q_BTNC.shape
    if T <= CHUNK:
        bias = bias(0, T) if callable(bias) else bias
        return _attend_chunk(q_BTNC, k_BKSC, v_BKSV, scores, offset, valid_BS, bias, sinks_N)
    chunks = -(-T // CHUNK)
    padding = chunks * CHUNK - T
    q_chunks = jnp.pad(q_BTNC, ((0, 0), (0, padding), (0, 0), (0, 0))).reshape(B, chunks, CHUNK, N, C).swapaxes(0, 1)
    if isinstance(bias, jax.Array) and bias.shape[2] > 1:
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, padding), (0, 0)))

    def one(index: jax.Array) -> jax.Array:
        start = index * CHUNK
        part = bias(start, CHUNK) if callable(bias) else bias
        if isinstance(bias, jax.Array) and bias.shape[2] > 1:
            part = jax.lax.dynamic_slice_in_dim(bias, start, CHUNK, axis=2)
        return _attend_chunk(q_chunks[index], k_BKSC, v_BKSV, scores, offset + start, valid_BS, part, sinks_N)

    out = jax.lax.map(jax.checkpoint(one), jnp.arange(chunks))
    return out.swapaxes(0, 1).reshape(B, chunks * CHUNK, N, v_BKSV.shape[-1])[:, :T]


def visible(T: int, S: int, scores: Scores, offset: jax.Array | int, valid_BS: jax.Array | None) -> jax.Array | None:
    """Which key slots each query sees, [B or 1, 1, 1, T, S]; None where all are."""
    mask = None
    if scores.causal or scores.window is not None:
        distance_TS = jnp.arange(T)[:, None] + offset - jnp.arange(S)
        mask = distance_TS >= 0 if scores.causal else jnp.ones((T, S), bool)
        if scores.window is not None:
            mask &= distance_TS < scores.window
        mask = mask[None, None, None]
    if valid_BS is not None:
        valid = valid_BS[:, None, None, None, :]
        mask = valid if mask is None else mask & valid
    return mask


def _attend_chunk(
    q_BTNC: jax.Array,
    k_BKSC: jax.Array,
    v_BKSV: jax.Array,
    scores: Scores,
    offset: jax.Array | int,
    valid_BS: jax.Array | None,
    bias: jax.Array | None,
    sinks_N: jax.Array | None,
) -> jax.Array:
    B, T, N, C = q_BTNC.shape
    K, S = k_BKSC.shape[1:3]
    q_BTKGC = q_BTNC.reshape(B, T, K, N // K, C)
    s_BKGTS = jnp.einsum(
        "BTKGC,BKSC->BKGTS", q_BTKGC, k_BKSC, precision=scores.precision, preferred_element_type=jnp.float32
    )
    s_BKGTS *= scores.scale
    if scores.softcap is not None:
        s_BKGTS = scores.softcap * jnp.tanh(s_BKGTS / scores.softcap)
    if bias is not None:
        heads = bias.shape[1]
        s_BKGTS += bias.reshape(bias.shape[0], *((K, N // K) if heads == N else (1, 1)), *bias.shape[2:])
    mask = visible(T, S, scores, offset, valid_BS)
    if mask is not None:
        s_BKGTS = jnp.where(mask, s_BKGTS, MASKED)
    top = jnp.max(s_BKGTS, axis=-1, keepdims=True)
    sinks = None if sinks_N is None else sinks_N.astype(jnp.float32).reshape(1, K, N // K, 1, 1)
    if sinks is not None:
        top = jnp.maximum(top, sinks)
    w_BKGTS = jnp.exp(s_BKGTS - jax.lax.stop_gradient(top))
    total = jnp.sum(w_BKGTS, axis=-1, keepdims=True)
    if sinks is not None:
        total += jnp.exp(sinks - top)
    w_BKGTS = (w_BKGTS / total).astype(v_BKSV.dtype)
    out = jnp.einsum("BKGTS,BKSV->BTKGV", w_BKGTS, v_BKSV, precision=scores.precision)
    return out.reshape(B, T, N, v_BKSV.shape[-1])
