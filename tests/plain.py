"""Textbook softmax attention, with all scores at once: the reference for the fast kernels."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from easydel.ops.scores import Scores


def plain(x: dict[str, Any], scores: Scores, offset: int = 0, bias: Any = None, sinks: bool = False) -> jax.Array:
    """[B, T, N, V] of q [B, T, N, C], k [B, K, S, C], v [B, K, S, V], valid [B, S] and sinks [N].

    With starts [B, S], only tokens with equal ones see each other.
    """
    k, v = (jnp.repeat(x[name], x["q"].shape[2] // x[name].shape[1], axis=1) for name in "kv")
    s = jnp.einsum("btnc,bnsc->bnts", x["q"], k) * scores.scale
    if scores.softcap is not None:
        s = scores.softcap * jnp.tanh(s / scores.softcap)
    s = s if bias is None else s + bias
    away = offset + jnp.arange(s.shape[2])[:, None] - jnp.arange(s.shape[3])
    back, ahead = (10**6 if limit is None else limit for limit in (scores.sight.before, scores.sight.after))
    seen = x["valid"][:, None, None] & (away >= -ahead) & (away <= back)
    if "starts" in x:
        seen &= (x["starts"][:, :, None] == x["starts"][:, None])[:, None]
    s = jnp.where(seen, s, -1e30)
    if sinks:
        s = jnp.concatenate([s, jnp.broadcast_to(x["sinks"][:, None, None], (*s.shape[:3], 1))], axis=-1)
    return jnp.einsum("bnts,bnsv->btnv", jax.nn.softmax(s, axis=-1)[..., : v.shape[2]], v)
