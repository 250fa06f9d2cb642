"""Attention over cached keys and values, one entry for every model."""

from __future__ import annotations

import jax

from easydel.ops.chunked import Keys, attend_chunked
from easydel.ops.scores import Bias, Scores

__all__ = ["Bias", "Scores", "attend"]

# B batch, T queries, S keys, N heads, K kv heads, C head channels, V value channels


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
    mesh: jax.sharding.Mesh | None = None,
) -> jax.Array:
    """Weighted values [B, T, N, V] in the queries' dtype.

    Query t sits in key slot `offset` + t and sees slots up to its own (`scores.causal`), within the window, where
    `valid_BS`. `bias` [B or 1, N or 1, T or 1, S] is added to the scaled scores, or the part of it that a function
    of (first query, queries) returns: that of prefixes that see each other is a mask, without `scores.causal`.
    `sinks_N` is one more logit per head that takes weight and gives nothing. An `offset` that is no traced array is
    worth knowing: see `chunked`.
    """
    looped = jax.default_backend() == "cpu" and (mesh is None or mesh.size == 1)
    return attend_chunked(q_BTNC, Keys(k_BKSC, v_BKSV, valid_BS, bias), scores, offset, sinks_N, looped=looped)
