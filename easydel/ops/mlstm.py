"""The matrix memory of xLSTM (Beck et al. 2024, arXiv:2405.04517), in memory that does not grow with the length.

A head's memory C [K, V] and its weight n [K] fade by the forget gate and take in keys and values by the input gate, an
exponential: C_t = f_t C_(t-1) + exp(i_t) k_t v_t', n_t = f_t n_(t-1) + exp(i_t) k_t. A query reads C_t' q divided by
the larger of |n_t' q| and 1. Both are kept divided by exp(m), where m is the largest exponent in them and at least that
of an empty memory, 0 at the start. Everything is float32: gates multiply up over the sequence.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from easydel.ops.recurrence import CHUNK, over_chunks

# B batch, T length, L, S tokens of a chunk, N heads, K key channels, V value channels
NOTHING = -1e38  # the input gate of a token that is not taken in: finite
Memory = tuple[jax.Array, jax.Array, jax.Array]  # C [B, N, K, V], n [B, N, K] and m [B, N]
einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class Gated(NamedTuple):
    """Tokens with their gates' logarithms. One with input `NOTHING` and forget 0 leaves the memory as it is."""

    q_BTNK: jax.Array
    k_BTNK: jax.Array
    v_BTNV: jax.Array
    input_BTN: jax.Array
    forget_BTN: jax.Array


def matrix_memory(tokens: Gated, memory: Memory, eps: float) -> tuple[jax.Array, Memory]:
    """Returns what the queries read, [B, T, N, V], and the memory after the last token. `eps` is added to divisors."""
    length = tokens.q_BTNK.shape[1]
    more = -length % CHUNK if length > CHUNK else 0
    gates = jnp.pad(tokens.input_BTN, ((0, 0), (0, more), (0, 0)), constant_values=NOTHING)
    rest = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, more), *((0, 0) for _ in x.shape[2:]))), tokens)
    y_BTNV, memory = over_chunks(partial(_chunk, eps), memory, rest._replace(input_BTN=gates), CHUNK)
    return y_BTNV[:, :length], memory


def _chunk(eps: float, memory: Memory, tokens: Gated) -> tuple[jax.Array, Memory]:
    """All tokens of a chunk at once: attention whose weights are products of gates."""
    (c_BNKV, n_BNK, m_BN), (q, k, v, *gates) = memory, tokens
    input_BNL, forget_BNL = (gate.swapaxes(1, 2) for gate in gates)
    fading_BNL = jnp.cumsum(forget_BNL, axis=-1)
    exponents_BNLS = fading_BNL[..., :, None] - fading_BNL[..., None, :] + input_BNL[..., None, :]
    exponents_BNLS = jnp.where(jnp.tri(fading_BNL.shape[-1], dtype=bool), exponents_BNLS, -jnp.inf)
    before_BNL = fading_BNL + m_BN[..., None]
    largest_BNL = jnp.maximum(before_BNL, jnp.max(exponents_BNLS, axis=-1))
    left_BNL = jnp.exp(before_BNL - largest_BNL)
    scores_BNLS = einsum("BLNK,BSNK->BNLS", q, k) * jnp.exp(exponents_BNLS - largest_BNL[..., None])
    read_BNLV = einsum("BNLS,BSNV->BNLV", scores_BNLS, v) + left_BNL[..., None] * einsum("BLNK,BNKV->BNLV", q, c_BNKV)
    weight_BNL = jnp.sum(scores_BNLS, axis=-1) + left_BNL * einsum("BLNK,BNK->BNL", q, n_BNK)
    y_BNLV = read_BNLV / (jnp.maximum(jnp.abs(weight_BNL), jnp.exp(-largest_BNL)) + eps)[..., None]
    taken_BNS, left_BN = jnp.exp(exponents_BNLS[..., -1, :] - largest_BNL[..., -1:]), left_BNL[..., -1]
    k_BSNK = k * taken_BNS.swapaxes(1, 2)[..., None]
    c_BNKV = left_BN[..., None, None] * c_BNKV + einsum("BSNK,BSNV->BNKV", k_BSNK, v)
    n_BNK = left_BN[..., None] * n_BNK + jnp.sum(k_BSNK, axis=1)
    return y_BNLV.swapaxes(1, 2), (c_BNKV, n_BNK, largest_BNL[..., -1])
