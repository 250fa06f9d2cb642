"""Attention of single queries to keys that are split over devices, slot by slot: each device weighs its own.

Where a softmax is summed in parts, only its maximum, its sum and the weighted values travel (as in ring attention, but
all at once). The cache of a long context then takes its share of memory on each device.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from easydel.ops.ring import Ring
from easydel.ops.scores import MASKED, Scores, masked_scores, weighted_sum
from easydel.sharding.axes import names_in
from easydel.sharding.placement import fit

# B batch, T queries, S keys, N heads, K kv heads, G query heads per kv head, C head channels, V value channels


def split_of(ring: Ring, batch: int, slots: int, heads: int, kv_heads: int) -> PartitionSpec | None:
    """Returns how keys [B, K, S, C] are split; None if slots are not, or query heads otherwise than their keys."""
    spec = fit((batch, kv_heads, slots), (ring.batch, ring.kv_heads, ring.sequence), ring.mesh)
    queries = fit((batch, heads), (ring.batch, ring.heads), ring.mesh)
    split = ring.devices > 1 and names_in(spec[2]) == names_in(ring.sequence)
    return PartitionSpec(*spec, None) if split and queries == PartitionSpec(*spec[:2]) else None


def attend_split(
    q_BTNC: jax.Array,
    k_BKSC: jax.Array,
    v_BKSV: jax.Array,
    scores: Scores,
    ring: Ring,
    offset: jax.Array | int,
    *,
    valid_BS: jax.Array | None = None,
    sinks_N: jax.Array | None = None,
    starts_BT: jax.Array | None = None,
) -> jax.Array:
    """Returns `attend` without bias. `split_of` must not be None for these sizes."""
    keys = split_of(ring, len(k_BKSC), k_BKSC.shape[2], q_BTNC.shape[2], k_BKSC.shape[1])
    assert keys is not None
    batch, heads, slots, _ = keys
    queries, row = PartitionSpec(batch, None, heads, None), PartitionSpec(batch, None)
    optional = ((valid_BS, PartitionSpec(batch, slots)), (sinks_N, PartitionSpec(heads)), (starts_BT, row))
    specs = (queries, keys, keys, PartitionSpec(), *(None if part is None else own for part, own in optional))
    local = partial(_attend_local, scores, str(ring.sequence))
    mapped = jax.shard_map(local, mesh=ring.mesh, in_specs=specs, out_specs=queries, check_vma=False)
    return mapped(q_BTNC, k_BKSC, v_BKSV, jnp.asarray(offset), valid_BS, sinks_N, starts_BT)


def _attend_local(
    scores: Scores,
    axis: str,
    q_BTNC: Any,
    k_BKSC: Any,
    v_BKSV: Any,
    offset: Any,
    valid_BS: Any,
    sinks_N: Any,
    starts: Any,
) -> jax.Array:
    B, T, N, C = q_BTNC.shape
    K, S = k_BKSC.shape[1:3]
    first = jax.lax.axis_index(axis) * S
    q_BKGTC = q_BTNC.reshape(B, T, K, N // K, C).transpose(0, 2, 3, 1, 4)

    def scored(q_KGTC: Any, k_KSC: Any, valid_S: Any, starts_T: Any) -> jax.Array:
        before = None if starts_T is None else jnp.where(starts_T[:, None] <= first + jnp.arange(S), 0.0, MASKED)
        return jax.vmap(lambda q, k: masked_scores(q, k, valid_S, before, offset - first, scores))(q_KGTC, k_KSC)

    axes = (0, 0, None if valid_BS is None else 0, None if starts is None else 0)
    s_BKGTS = jax.vmap(scored, axes)(q_BKGTC, k_BKSC, valid_BS, starts)
    top = jax.lax.pmax(jnp.max(s_BKGTS, axis=-1, keepdims=True), axis)
    sinks = None if sinks_N is None else sinks_N.astype(jnp.float32).reshape(K, N // K, 1, 1)
    top = top if sinks is None else jnp.maximum(top, sinks)
    w_BKGTS = jnp.exp(s_BKGTS - top)
    own = jax.vmap(jax.vmap(lambda w, v: weighted_sum(w, v, scores)))(w_BKGTS, v_BKSV)
    out, total = jax.lax.psum((own, jnp.sum(w_BKGTS, axis=-1, keepdims=True)), axis)
    total = total if sinks is None else total + jnp.exp(sinks - top)
    return (out / total).astype(q_BTNC.dtype).transpose(0, 3, 1, 2, 4).reshape(B, T, N, -1)
