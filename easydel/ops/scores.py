"""From queries and keys to weighted values: the computation of one kv head, in every form of attention.

Scores and softmax are float32: in bfloat16, sums over thousands of keys would lose small weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import optimization_barrier

from easydel.ops.sight import Causal, Sight, order_seen

# T queries, S keys, G query heads per kv head, R = G T rows of queries, C head channels, V value channels
Bias = jax.Array | Callable[[jax.Array | int, int], jax.Array]
MASKED = -1e30  # added to scores; finite, so that rows without any key (padding) stay free of NaN


@dataclass(frozen=True)
class Scores:
    """The way from scores to weights: scale, tanh cap (Gemma 2), the sight of each query, and matmul precision."""

    scale: float
    softcap: float | None = None
    sight: Sight = Causal()
    precision: jax.lax.Precision | None = None


def order_mask(queries: int, keys: int, distance: jax.Array | int, scores: Scores) -> jax.Array | None:
    """Returns the sight's limits as a bias on scores, [T, S]: 0 or MASKED; None where every query sees every key.

    `distance` is the slot of the first query minus that of the first key.
    """
    seen_TS = order_seen(queries, keys, distance, scores.sight)
    return None if seen_TS is None else jnp.where(seen_TS, 0.0, MASKED)


def raw_scores(q_GTC: jax.Array, k_SC: jax.Array, scores: Scores) -> jax.Array:
    """Returns scaled and capped products [G, T, S] in float32, as one product of two matrices."""
    G, T, C = q_GTC.shape
    s_GTS = _pairs(scores, q_GTC.reshape(G * T, C), k_SC).reshape(G, T, -1) * scores.scale
    return s_GTS if scores.softcap is None else scores.softcap * jnp.tanh(s_GTS / scores.softcap)


# Gradients by keys and values are [S, C] = [R, S]^T [R, C]. On a CPU, XLA computes that at a third of the speed of
# [C, S] = [C, R] [R, S], and rewrites the fast form into the slow one unless barriers forbid it.


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _pairs(scores: Scores, q_RC: jax.Array, k_SC: jax.Array) -> jax.Array:
    """Returns the product of each of R query vectors with each key, [R, S] in float32."""
    return _product(scores, q_RC, k_SC, 1, 1)


@_pairs.defjvp
def _pairs_jvp(scores: Scores, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (q_RC, k_SC), (d_q_RC, d_k_SC) = primals, tangents
    q_CR, d_k_CS = optimization_barrier(q_RC.T), optimization_barrier(d_k_SC.T)
    return _pairs(scores, q_RC, k_SC), _pairs(scores, d_q_RC, k_SC) + _product(scores, q_CR, d_k_CS, 0, 0)


def _weighted_tangents(scores: Scores, w_GTS: jax.Array, d_v_SV: jax.Array) -> jax.Array:
    """Returns `weighted_sum` for tangents of values."""
    G, T, S = w_GTS.shape
    d_VR = _product(scores, optimization_barrier(d_v_SV.T), w_GTS.reshape(G * T, S).astype(d_v_SV.dtype), 1, 1)
    return optimization_barrier(d_VR).T.reshape(G, T, -1)


def _product(scores: Scores, x: jax.Array, y: jax.Array, x_dim: int, y_dim: int) -> jax.Array:
    """Returns the product of two matrices, summed over those dimensions, in float32."""
    dimensions = (((x_dim,), (y_dim,)), ((), ()))
    return jax.lax.dot_general(x, y, dimensions, precision=scores.precision, preferred_element_type=jnp.float32)


def masked_scores(
    q_GTC: jax.Array,
    k_SC: jax.Array,
    valid_S: jax.Array | None,
    bias_GTS: jax.Array | None,
    distance: jax.Array | int,
    scores: Scores,
) -> jax.Array:
    """Returns `raw_scores`, with MASKED added for keys that are not valid or that a query does not see."""
    s_GTS = raw_scores(q_GTC, k_SC, scores)
    if bias_GTS is not None:
        s_GTS += bias_GTS
    if (order_TS := order_mask(s_GTS.shape[1], s_GTS.shape[2], distance, scores)) is not None:
        s_GTS += order_TS
    return s_GTS if valid_S is None else s_GTS + jnp.where(valid_S, 0.0, MASKED)


def weighted_sum(w_GTS: jax.Array, v_SV: jax.Array, scores: Scores) -> jax.Array:
    """Returns values summed with weights, [G, T, V] in float32; the product takes weights in the values' dtype."""
    G, T, S = w_GTS.shape
    return _product(scores, w_GTS.reshape(G * T, S).astype(v_SV.dtype), v_SV, 1, 0).reshape(G, T, -1)


def attend_head(
    q_GTC: jax.Array,
    k_SC: jax.Array,
    v_SV: jax.Array,
    valid_S: jax.Array | None,
    bias_GTS: jax.Array | None,
    sinks_G: jax.Array | None,
    distance: jax.Array | int,
    scores: Scores,
) -> jax.Array:
    """Returns weighted values [G, T, V] of one kv head, in the queries' dtype."""
    s_GTS = masked_scores(q_GTC, k_SC, valid_S, bias_GTS, distance, scores)
    sinks_G11 = None if sinks_G is None else sinks_G.astype(jnp.float32)[:, None, None]
    return _softmax_sum(scores, s_GTS, v_SV, sinks_G11).astype(q_GTC.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _softmax_sum(scores: Scores, s_GTS: jax.Array, v_SV: jax.Array, sinks_G11: jax.Array | None) -> jax.Array:
    """Returns values summed with the softmax of `s_GTS`, [G, T, V] in float32.

    The division by the sum of weights follows the product with the values, which is narrower than the weights.
    """
    w_GTS, total_GT1, _ = _weights(s_GTS, sinks_G11)
    return weighted_sum(w_GTS, v_SV, scores) / total_GT1


@_softmax_sum.defjvp
def _softmax_sum_jvp(scores: Scores, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """Differentiates by way of normalized weights: the backward pass needs no second product with the values."""
    (s_GTS, v_SV, sinks_G11), (d_s_GTS, d_v_SV, d_sinks_G11) = primals, tangents
    w_GTS, total_GT1, sink_GT1 = _weights(s_GTS, sinks_G11)
    out_GTV = weighted_sum(w_GTS, v_SV, scores) / total_GT1
    p_GTS = w_GTS / total_GT1
    mean_GT1 = jnp.sum(p_GTS * d_s_GTS, axis=-1, keepdims=True)
    if sinks_G11 is not None:
        mean_GT1 += sink_GT1 / total_GT1 * d_sinks_G11
    by_scores = weighted_sum(p_GTS * (d_s_GTS - mean_GT1), v_SV, scores)
    return out_GTV, by_scores + _weighted_tangents(scores, p_GTS, d_v_SV)


def _weights(s_GTS: jax.Array, sinks_G11: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the softmax before its division, the sum [G, T, 1] to divide by, and the sink's share of that sum."""
    top_GT1 = jnp.max(s_GTS, axis=-1, keepdims=True)
    if sinks_G11 is not None:
        top_GT1 = jnp.maximum(top_GT1, sinks_G11)
    top_GT1 = jax.lax.stop_gradient(top_GT1)
    w_GTS = jnp.exp(s_GTS - top_GT1)
    sink_GT1 = jnp.zeros_like(top_GT1) if sinks_G11 is None else jnp.exp(sinks_G11 - top_GT1)
    total_GT1 = jnp.sum(w_GTS, axis=-1, keepdims=True)
    return w_GTS, total_GT1 if sinks_G11 is None else total_GT1 + sink_GT1, sink_GT1
