"""The gated delta rule (Yang et al. 2024, arXiv:2412.06464), in memory that does not grow with the length.

The state of a head is a matrix S [C, V] that answers a query q with S^T q. A token with decay a (exp of `log_decay`),
key k, value v and strength beta fades it, S' = a S, then moves what it holds under the key towards the value:
S = S' + k u^T, where u = beta (v - S'^T k). Without beta it adds the value itself, u = v: linear attention with decay
(Lightning attention, arXiv:2501.08313). Decays are one for each head, or one for each channel of its key (KDA,
arXiv:2510.26692). All of it is float32: errors of the decay multiply up over the sequence.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from easydel.ops.recurrence import over_chunks
from easydel.ops.triangular import matmul, unit_lower_inverse

# B batch, T length, L length of a chunk, N heads, C key channels, V value channels, A decays of a head: 1 or C
CHUNK = 64
CHUNK_OF_CHANNELS = 16  # decays between two tokens are [L, L, C] there, in place of [L, L]


class Tokens(NamedTuple):
    """What tokens do to the state of each head. One whose `log_decay` and `k` are zero leaves it as it is."""

    q_BTNC: jax.Array
    k_BTNC: jax.Array
    v_BTNV: jax.Array
    log_decay_BTNA: jax.Array
    beta_BTN: jax.Array | None


def delta_rule(tokens: Tokens, state_BNCV: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the outputs [B, T, N, V] and the state after the last token."""
    if tokens.q_BTNC.shape[1] == 1:
        return token_by_token(tokens, state_BNCV)
    size = CHUNK if tokens.log_decay_BTNA.shape[-1] == 1 else CHUNK_OF_CHANNELS
    return over_chunks(_chunk, state_BNCV, tokens, size)


def token_by_token(tokens: Tokens, state_BNCV: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As `delta_rule`, as it is defined."""

    def one(state_BNCV: jax.Array, token: Tokens) -> tuple[jax.Array, jax.Array]:
        q_BNC, k_BNC, u_BNV, log_decay_BNA, beta_BN = token
        state_BNCV = jnp.exp(log_decay_BNA)[..., None] * state_BNCV
        if beta_BN is not None:
            # sums of products, not matrix products: those may be rounded to fewer bits
            held_BNV = jnp.sum(state_BNCV * k_BNC[..., None], axis=-2)
            u_BNV = beta_BN[..., None] * (u_BNV - held_BNV)
        state_BNCV = state_BNCV + k_BNC[..., None] * u_BNV[..., None, :]
        return state_BNCV, jnp.sum(state_BNCV * q_BNC[..., None], axis=-2)

    state_BNCV, out_TBNV = jax.lax.scan(one, state_BNCV, jax.tree.map(lambda part: part.swapaxes(0, 1), tokens))
    return out_TBNV.swapaxes(0, 1), state_BNCV


def _chunk(state_BNCV: jax.Array, tokens: Tokens) -> tuple[jax.Array, jax.Array]:
    """All tokens of a chunk at once, in the WY form (section 3.3 of the paper).

    With decays D_t from the chunk's begin up to token t, u_t = beta_t (v_t - S_0^T D_t k_t - sum over s < t of
    (k_t . D_t/D_s k_s) u_s): a triangular system for all of them.
    """
    q, k, u, log_decay = (part.swapaxes(1, 2) for part in tokens[:4])  # [B, N, L, ...]
    total = jnp.cumsum(log_decay, axis=-2)
    from_start, to_end = jnp.exp(total), jnp.exp(total[..., -1:, :] - total)
    lower = jnp.tri(q.shape[-2], dtype=bool)
    # differences of logarithms: quotients of decays would overflow
    between = jnp.exp(jnp.where(lower[..., None], total[..., :, None, :] - total[..., None, :, :], -jnp.inf))

    def products(x: jax.Array) -> jax.Array:
        """x_t . D_t/D_s k_s, [B, N, t, s], zero where s > t."""
        if between.shape[-1] == 1:
            return matmul(x, k.swapaxes(-1, -2)) * between[..., 0]
        return jnp.sum(x[..., :, None, :] * k[..., None, :, :] * between, axis=-1)

    if tokens.beta_BTN is not None:
        beta = tokens.beta_BTN.swapaxes(1, 2)[..., None]
        known = beta * (u - matmul(k * from_start, state_BNCV))
        u = matmul(unit_lower_inverse(beta * products(k)), known)
    out = matmul(q * from_start, state_BNCV) + matmul(products(q), u)
    state_BNCV = from_start[..., -1, :, None] * state_BNCV + matmul((k * to_end).swapaxes(-1, -2), u)
    return out.swapaxes(1, 2), state_BNCV
