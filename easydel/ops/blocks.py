"""Attention in blocks of queries: each sees its own block of keys, perhaps neighbouring ones, and a few keys beside.

The work grows with the length of a sequence, not with its square. The scores of a few blocks exist at a time, in the
backward pass too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from easydel.ops.scores import MASKED

# B batch, T tokens, X blocks, Q queries of a block, K keys that a block sees, G keys beside, N heads, C head channels
ROWS = 256  # queries whose scores are in memory at once, or one block if that has more


@dataclass(frozen=True)
class Beside:
    """Keys and values [B, G, N, C] that all queries see, with a `bias` on their scores, [B or 1, N or 1, Q or 1, G].

    The bias may be a function of the numbers that `own_BT` has for a block's queries, [B, Q].
    """

    k_BGNC: jax.Array
    v_BGNC: jax.Array
    bias: jax.Array | Callable[[jax.Array], jax.Array] | None = None
    own_BT: jax.Array | None = None


def attend_blocks(
    q_BTNC: jax.Array,
    k_BTNC: jax.Array,
    v_BTNC: jax.Array,
    *,
    size: int,
    around: int,
    scale: float,
    bias_NQK: jax.Array | None = None,
    valid_BT: jax.Array | None = None,
    beside: Beside | None = None,
    precision: jax.lax.Precision | None = None,
) -> jax.Array:
    """Returns weighted values [B, T, N, C] in the queries' dtype.

    A block has `size` tokens and sees itself and `around` blocks on each side, of these the keys where `valid_BT` is
    true. `bias_NQK` [N or 1, size, keys in sight] is added to the scaled scores.
    """
    B, T = q_BTNC.shape[:2]
    together = max(1, min(ROWS // size, -(-T // size)))
    groups = -(-T // (size * together))
    count = groups * together
    valid_BT = jnp.ones((B, T), bool) if valid_BT is None else valid_BT
    own_BT = None if beside is None else beside.own_BT
    queries = [_blocks(part, count, size, 0) for part in (q_BTNC, own_BT)]
    keys = [_blocks(part, count, size, around) for part in (k_BTNC, v_BTNC, valid_BT)]

    @jax.checkpoint
    def one(parts: tuple[list[Any], list[Any]]) -> jax.Array:
        (q_BQNC, own_BQ), (k_BKNC, v_BKNC, valid_BK) = parts
        s_BNQK = _scores(q_BQNC, k_BKNC, scale, precision) + jnp.where(valid_BK, 0.0, MASKED)[:, None, None]
        s_BNQK = s_BNQK if bias_NQK is None else s_BNQK + bias_NQK
        if beside is None:
            return _sum(jax.nn.softmax(s_BNQK, axis=-1), v_BKNC, precision).astype(q_BQNC.dtype)
        s_BNQG = _scores(q_BQNC, beside.k_BGNC, scale, precision)
        bias = beside.bias(own_BQ) if callable(beside.bias) else beside.bias
        s_BNQG = s_BNQG if bias is None else s_BNQG + bias
        w_BNQS = jax.nn.softmax(jnp.concatenate([s_BNQG, s_BNQK], axis=-1), axis=-1)
        w_BNQG, w_BNQK = jnp.split(w_BNQS, [s_BNQG.shape[-1]], axis=-1)
        out_BQNC = _sum(w_BNQK, v_BKNC, precision) + _sum(w_BNQG, beside.v_BGNC, precision)
        return out_BQNC.astype(q_BQNC.dtype)

    grouped = jax.tree.map(lambda part: part.reshape(groups, together, *part.shape[1:]), (queries, keys))
    out = jax.lax.map(jax.vmap(one), grouped) if groups > 1 else jax.vmap(one)(jax.tree.map(lambda p: p[0], grouped))
    out_XBQNC = out.reshape(count, B, size, *q_BTNC.shape[2:])
    return jnp.moveaxis(out_XBQNC, 0, 1).reshape(B, count * size, *q_BTNC.shape[2:])[:, :T]


def _blocks(part_BT: jax.Array | None, count: int, size: int, around: int) -> jax.Array | None:
    """Returns `count` blocks, each with `around` neighbours on both sides: [X, B, (1 + 2 around) size, ...]."""
    if part_BT is None:
        return None
    B, T = part_BT.shape[:2]
    edge, rest = around * size, [(0, 0)] * (part_BT.ndim - 2)
    padded = jnp.pad(part_BT, [(0, 0), (edge, edge + count * size - T), *rest])
    cut = padded.reshape(B, count + 2 * around, size, *part_BT.shape[2:])
    views = [cut[:, start : start + count] for start in range(1 + 2 * around)]
    return jnp.moveaxis(jnp.concatenate(views, axis=2), 1, 0)


def _scores(q_BQNC: jax.Array, k_BKNC: jax.Array, scale: float, precision: Any) -> jax.Array:
    wide: Any = {"precision": precision, "preferred_element_type": jnp.float32}
    return jnp.einsum("BQNC,BKNC->BNQK", q_BQNC, k_BKNC, **wide) * scale


def _sum(w_BNQK: jax.Array, v_BKNC: jax.Array, precision: Any) -> jax.Array:
    wide: Any = {"precision": precision, "preferred_element_type": jnp.float32}
    return jnp.einsum("BNQK,BKNC->BQNC", w_BNQK.astype(v_BKNC.dtype), v_BKNC, **wide)
