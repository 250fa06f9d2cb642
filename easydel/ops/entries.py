"""Attention to the keys of single tokens in a window and, in the same softmax, to keys that stand for several tokens.

Keys are values too, and all heads share them. One chunk of queries is computed at a time, with the keys of its window.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from easydel.ops.attend import attend
from easydel.ops.chunked import CHUNK
from easydel.ops.scores import MASKED, Scores
from easydel.ops.sight import Around, Sight, order_seen

# B batch, T queries, Q queries of a chunk, L keys of single tokens, E keys of several, S keys of a chunk, N heads,
# C head channels, K chosen keys


@dataclass(frozen=True)
class Near:
    """Keys of single tokens, of which the first query's is number `before`, and which of them are valid."""

    keys_BLC: jax.Array
    valid_BL: jax.Array | None
    before: int

    def seen(self, start: jax.Array | int, queries: int, sight: Sight) -> tuple[jax.Array, jax.Array]:
        """Returns the keys that some of `queries` queries from `start` on see, and which each sees, [B or 1, Q, S]."""
        length, back, own = self.keys_BLC.shape[1], sight.before, self.before + start
        assert back is not None
        size = min(back + queries, length)
        first = jnp.clip(own - back, 0, length - size)
        order_QS = order_seen(queries, size, own - first, sight)
        assert order_QS is not None
        seen_BQS = order_QS[None]
        if self.valid_BL is not None:
            seen_BQS = seen_BQS & jax.lax.dynamic_slice_in_dim(self.valid_BL, first, size, axis=1)[:, None]
        return jax.lax.dynamic_slice_in_dim(self.keys_BLC, first, size, axis=1), seen_BQS


@dataclass(frozen=True)
class Far:
    """Keys of several tokens, how many of them each query may see, and which are chosen for it (None: all)."""

    keys_BEC: jax.Array
    count_BT: jax.Array
    chosen_BTK: jax.Array | None

    def seen(self, start: jax.Array | int, queries: int) -> jax.Array:
        """Returns which keys each of `queries` queries from `start` on sees, [B, Q, E]."""
        batch, keys = self.keys_BEC.shape[:2]

        def cut(part: jax.Array) -> jax.Array:
            padded = jnp.pad(part, [(0, 0), (0, -part.shape[1] % queries), *[(0, 0)] * (part.ndim - 2)])
            return jax.lax.dynamic_slice_in_dim(padded, start, queries, axis=1)

        seen_BQE = jnp.arange(keys) < cut(self.count_BT)[..., None]
        if self.chosen_BTK is None:
            return seen_BQE
        nothing_BQE = jnp.zeros((batch, queries, keys), bool)
        return seen_BQE & jnp.put_along_axis(nothing_BQE, cut(self.chosen_BTK), True, axis=-1, inplace=False)


def attend_with_entries(
    q_BTNC: jax.Array, near: Near, far: Far | None, scores: Scores, sinks_N: jax.Array, mesh: jax.sharding.Mesh | None
) -> jax.Array:
    """Returns weighted keys [B, T, N, C]. The sight of `scores` is that of single tokens, and has a window."""

    def chunk(q_BQNC: jax.Array, start: jax.Array | int) -> jax.Array:
        keys_BSC, seen_BQS = near.seen(start, q_BQNC.shape[1], scores.sight)
        if far is not None:
            seen_BQE = far.seen(start, q_BQNC.shape[1])
            window_BQS = jnp.broadcast_to(seen_BQS, (*seen_BQE.shape[:2], seen_BQS.shape[2]))
            seen_BQS = jnp.concatenate([window_BQS, seen_BQE], axis=2)
            keys_BSC = jnp.concatenate([keys_BSC, far.keys_BEC.astype(keys_BSC.dtype)], axis=1)
        bias, keys_B1SC = jnp.where(seen_BQS, 0.0, MASKED)[:, None], keys_BSC[:, None]
        everything = replace(scores, sight=Around())
        return attend(q_BQNC, keys_B1SC, keys_B1SC, everything, bias=bias, sinks_N=sinks_N, mesh=mesh)

    B, T = q_BTNC.shape[:2]
    if T <= CHUNK:
        return chunk(q_BTNC, 0)
    padded_BTNC = jnp.pad(q_BTNC, ((0, 0), (0, -T % CHUNK), (0, 0), (0, 0)))
    chunks = jnp.moveaxis(padded_BTNC.reshape(B, -1, CHUNK, *q_BTNC.shape[2:]), 1, 0)
    one = jax.checkpoint(lambda operands: chunk(*operands))  # one chunk's scores exist at a time
    out = jax.lax.map(one, (chunks, CHUNK * jnp.arange(len(chunks))))
    return jnp.moveaxis(out, 0, 1).reshape(padded_BTNC.shape)[:, :T]
