"""Attention between two pieces of a split sequence, by plain products: a block of queries at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from easydel.ops.scores import MASKED, Scores, masked_scores, weighted_sum

# B batch, K kv heads, G query heads per kv head, T queries and S keys of a piece, C head channels, V value channels
BLOCK = 256  # queries whose scores exist at a time


@dataclass(frozen=True)
class PlainPieces:
    """The `Pieces` of a ring that any device computes, of any sizes."""

    scores: Scores

    def prepared(self, q_BTNC: jax.Array, k_BKSC: jax.Array, v_BKSV: jax.Array) -> tuple[jax.Array, ...]:
        return q_BTNC, k_BKSC, v_BKSV

    def absorb(self, distance: jax.Array, own: Any, visitors: Any) -> Any:
        q, top, total, summed, *starts = own
        state = (q, top, total, summed, *_beside(q, starts))
        return _blockwise(partial(_absorb, self.scores), distance, state, visitors)

    def gradients(self, distance: jax.Array, own: Any, visitors: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        q, _, d_out, delta, top, total, *starts = own
        state = (q, d_out.astype(jnp.float32), delta, top, total, *_beside(q, starts))
        return _blockwise_gradients(self.scores, distance, state, visitors)


def _beside(q: jax.Array, starts: Any) -> Any:
    """Returns the starts [B, T] of queries [B, K, G, T, C], as [B, K, 1, T, 1]."""
    return [jnp.broadcast_to(part[:, None, None, :, None], (*q.shape[:2], 1, q.shape[3], 1)) for part in starts]


def _row(row_S: jax.Array, own_start: Any, starts_S: Any) -> jax.Array:
    """Returns the scores' bias that masks keys that are not valid, or of other segments: [S] or [1, T, S]."""
    return row_S if not starts_S else row_S + jnp.where(own_start[0] == starts_S[0], 0.0, MASKED)


def _absorb(scores: Scores, distance: Any, own: Any, visitors: Any) -> Any:
    """Updates the online softmax of one kv head's queries: top score, sum of weights, weighted values."""
    q_GTC, top, total, summed, *own_start = own
    k_SC, v_SV, row_S, *starts_S = visitors
    s_GTS = masked_scores(q_GTC, k_SC, None, _row(row_S, own_start, starts_S), distance, scores)
    new_top = jnp.maximum(top, jnp.max(s_GTS, axis=-1, keepdims=True))
    w_GTS, fade = jnp.exp(s_GTS - new_top), jnp.exp(top - new_top)
    total = total * fade + jnp.sum(w_GTS, axis=-1, keepdims=True)
    return new_top, total, summed * fade + weighted_sum(w_GTS, v_SV, scores)


def _blocks(T: int) -> int:
    """Returns the number of blocks, of at most BLOCK queries, to cut a piece into; 1 if only tiny blocks divide it."""
    count = next(count for count in range(-(-T // BLOCK), T + 1) if T % count == 0)
    return count if T // count >= 32 or T <= BLOCK else 1


def _cut(own: Any, count: int) -> Any:
    """Cuts each [B, K, G, T, X] into [count, B, K, G, T / count, X]."""
    return jax.tree.map(lambda part: jnp.stack(jnp.split(part, count, axis=3)), own)


def _joined(parts: Any) -> Any:
    return jax.tree.map(lambda part: jnp.concatenate(list(part), axis=3), parts)


def _each_head(function: Any) -> Any:
    """Maps `function` over batch and kv heads; all heads share what is valid and where segments begin."""

    def heads(own: Any, visitors: Any) -> Any:
        return jax.vmap(function, in_axes=(0, (0, 0, *[None] * (len(visitors) - 2))))(own, visitors)

    return jax.vmap(heads)


def _blockwise(absorb: Any, distance: jax.Array, own: Any, visitors: Any) -> Any:
    count = _blocks(own[0].shape[3])
    size = own[0].shape[3] // count

    def block(operands: Any) -> Any:
        index, own = operands
        return _each_head(partial(absorb, distance + index * size))(own, visitors)

    return _joined(jax.lax.map(block, (jnp.arange(count), _cut(own, count))))


def _blockwise_gradients(scores: Scores, distance: jax.Array, own: Any, visitors: Any) -> tuple[Any, Any, Any]:
    """Returns one query piece's and one key piece's share of the gradients of q, k and v, in float32."""
    count = _blocks(own[0].shape[3])
    size = own[0].shape[3] // count

    def block(carry: Any, operands: Any) -> tuple[Any, Any]:
        index, own = operands

        def surrogate(q: Any, k: Any, v: Any) -> jax.Array:
            """Returns a value with attention's derivative: weight * (d_out . value - d_out . out) by each score."""
            head = partial(_surrogate, scores, distance + index * size)
            return jnp.sum(_each_head(head)((q, *own[1:]), (k, v, *visitors[2:])))

        d_q, d_k, d_v = (d.astype(jnp.float32) for d in jax.grad(surrogate, (0, 1, 2))(own[0], *visitors[:2]))
        return (carry[0] + d_k, carry[1] + d_v), d_q

    zeros = tuple(jnp.zeros(part.shape, jnp.float32) for part in visitors[:2])
    (d_k, d_v), d_q = jax.lax.scan(block, zeros, (jnp.arange(count), _cut(own, count)))
    return _joined(d_q), d_k, d_v


def _surrogate(scores: Scores, distance: Any, own: Any, visitors: Any) -> jax.Array:
    q_GTC, d_out, delta, top, total, *own_start = own
    k_SC, v_SV, row_S, *starts_S = visitors
    row = _row(row_S, own_start, starts_S)
    w_GTS = jnp.exp(masked_scores(q_GTC, k_SC, None, row, distance, scores) - top) / total
    return jnp.sum(weighted_sum(w_GTS, v_SV, scores) * d_out) - jnp.sum(w_GTS * delta)
