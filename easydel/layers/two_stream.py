"""A stream of tokens, and one that predicts what follows them (ProphetNet: Qi et al. 2020, arXiv:2001.04063)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from easydel.errors import ConfigError
from easydel.layers.block import Flow
from easydel.layers.context import Context
from easydel.layers.kv_cache import Seen, empty_keys, update
from easydel.layers.linear import Embedding, Linear
from easydel.layers.part import HeadSizes, Part
from easydel.layers.tower import Embedded
from easydel.ops.attend import Causal, Scores
from easydel.ops.scores import MASKED
from easydel.policy import ATTENTION_OUTPUT, Policy

# B batch, H streams (tokens, prediction), T tokens of this call, S key slots, N heads, C head channels, R buckets


@dataclass(frozen=True)
class Prediction:
    """A stream with the tokens' predictions behind them, [B, 2 T, D]; these alone are the output.

    A prediction begins as a learned vector, the last of `vectors`, in the next token's position. The other vectors
    predict tokens further ahead, in training alone, and are kept.
    """

    vectors: int

    def build(self, features: int, policy: Policy) -> PredictionStream:
        return PredictionStream(self, features, policy)


class PredictionStream(nnx.Module):
    def __init__(self, record: Prediction, features: int, policy: Policy):
        self.vectors = Embedding(record.vectors, features, policy)
        self.record = record

    def open(self, x_BTD: jax.Array, embedded: Embedded) -> Flow:
        last_1D = self.vectors(jnp.array([self.record.vectors - 1]))
        return {"x": jnp.concatenate([x_BTD, embedded(jnp.broadcast_to(last_1D, x_BTD.shape), 1)], axis=1)}

    def close(self, flow: Flow) -> jax.Array:
        return flow["x"][:, flow["x"].shape[1] // 2 :]


@dataclass(frozen=True)
class TwoStreamAttention(Part):
    """Causal attention in which a prediction sees its token, all tokens before, and itself; no token sees predictions.

    Scores have a bias for each of `buckets` of distances, projected from the query's own input. Half of the buckets
    hold one distance each, the others grow logarithmically up to `max_distance`. A prediction is one further from
    tokens than its token is. All projections have biases.
    """

    name: ClassVar[str] = "self_attn"
    heads: int
    head_dim: int
    buckets: int
    max_distance: int

    def __post_init__(self) -> None:
        if self.buckets < 2 or self.max_distance <= self.buckets // 2:
            raise ConfigError(f"{self.buckets} buckets of distances up to {self.max_distance} cannot be laid out")

    def build(self, features: int, policy: Policy) -> TwoStreamLayer:
        return TwoStreamLayer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, Any]:
        return empty_keys(batch, length, self.heads, (self.head_dim, self.head_dim), None, dtype)

    def head_sizes(self) -> Iterable[HeadSizes]:
        return (HeadSizes(self.heads, self.heads, self.head_dim),)

    def rewinds(self, length: int, end: int) -> None:
        return None

    def bucket(self, distance: jax.Array) -> jax.Array:
        """Returns the bucket of a distance, which is the query's position minus the key's."""
        exact, away = self.buckets // 2, np.arange(self.max_distance + 1, dtype=np.float32)
        # float32, and whole numbers last: the rounding at a bucket's edge is that of training
        steps = np.log(np.maximum(away, 1) / np.float32(exact)) / np.float32(math.log(self.max_distance / exact))
        grown = np.minimum(np.float32(exact) + steps * np.float32(self.buckets - exact), self.buckets - 1)
        return jnp.asarray(np.where(away < exact, away, grown).astype(np.int32))[jnp.clip(distance, 0, len(away) - 1)]


class TwoStreamLayer(nnx.Module):
    def __init__(self, record: TwoStreamAttention, features: int, policy: Policy):
        wide = record.heads * record.head_dim
        self.q_proj, self.k_proj, self.v_proj = (Linear(features, wide, policy, bias=True) for _ in range(3))
        self.o_proj = Linear(wide, features, policy, bias=True)
        self.relative = Linear(features, record.buckets * record.heads, policy, bias=True)
        self.record, self.policy = record, policy

    def __call__(self, x_BXD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        record, precision = self.record, self.policy.precision
        q_BHTNC = self._heads(self.q_proj(x_BXD))
        k_BHTNC, v_BHTNC = (self._heads(project(x_BXD), kv=True) for project in (self.k_proj, self.v_proj))
        rows_BHTRN = self.relative(x_BXD).reshape(*q_BHTNC.shape[:3], record.buckets, record.heads).astype(jnp.float32)
        scores = Scores(record.head_dim**-0.5, sight=Causal(), precision=precision)
        k_BNTC, v_BNTC = (part[:, 0].swapaxes(1, 2) for part in (k_BHTNC, v_BHTNC))
        cache, seen = update(cache, k_BNTC, v_BNTC, context, scores, context.starts_BT)
        distance_TS = self._distances(seen, q_BHTNC.shape[2])
        k_BNSC, v_BNSC = (part.astype(q_BHTNC.dtype) for part in (seen.k_BKSC, seen.v_BKSC))
        products: Any = {"precision": precision, "preferred_element_type": jnp.float32}
        s_BHNTS = jnp.einsum("BHTNC,BNSC->BHNTS", q_BHTNC, k_BNSC, **products) * scores.scale
        s_BHNTS = s_BHNTS + self._bias(rows_BHTRN, distance_TS) + self._mask(seen, distance_TS)
        own_BNT = jnp.einsum("BTNC,BTNC->BNT", q_BHTNC[:, 1], k_BHTNC[:, 1], **products) * scores.scale
        own_BNT = own_BNT + rows_BHTRN[:, 1, :, 0].swapaxes(1, 2)
        own_BHNT = jnp.stack([jnp.full_like(own_BNT, MASKED), own_BNT], axis=1)
        weights = jax.nn.softmax(jnp.concatenate([s_BHNTS, own_BHNT[..., None]], axis=-1), axis=-1)
        weights = weights.astype(q_BHTNC.dtype)
        out_BHTNC = jnp.einsum("BHNTS,BNSC->BHTNC", weights[..., :-1], v_BNSC, precision=precision)
        out_BHTNC = out_BHTNC + weights[..., -1].swapaxes(2, 3)[..., None] * v_BHTNC[:, 1:]
        out_BXNC = out_BHTNC.reshape(len(x_BXD), x_BXD.shape[1], record.heads, record.head_dim)
        out_BXNC = checkpoint_name(self.policy.shard_heads(out_BXNC), ATTENTION_OUTPUT)
        return self.o_proj(out_BXNC.reshape(*x_BXD.shape[:2], -1)), cache

    def _heads(self, part_BXE: jax.Array, *, kv: bool = False) -> jax.Array:
        B, both = part_BXE.shape[:2]
        part_BXNC = part_BXE.reshape(B, both, self.record.heads, self.record.head_dim)
        return self.policy.shard_heads(part_BXNC, kv=kv).reshape(B, 2, both // 2, *part_BXNC.shape[2:])

    def _distances(self, seen: Seen, queries: int) -> jax.Array:
        """Returns the number of slots from each key to each token."""
        first = seen.known_slot if seen.slot is None else seen.slot
        return first + jnp.arange(queries)[:, None] - jnp.arange(seen.k_BKSC.shape[2])

    def _bias(self, rows_BHTRN: jax.Array, distance_TS: jax.Array) -> jax.Array:
        chosen_HTS = self.record.bucket(jnp.stack([distance_TS, distance_TS + 1]))
        bias_BHTSN = jnp.take_along_axis(rows_BHTRN, chosen_HTS[None, ..., None], axis=3)
        return jnp.moveaxis(bias_BHTSN, -1, 2)

    def _mask(self, seen: Seen, distance_TS: jax.Array) -> jax.Array:
        """Returns what is added to scores, [B or 1, 1, 1, T, S]."""
        seen_BTS = (distance_TS >= 0)[None]
        if seen.valid_BS is not None:
            seen_BTS = seen_BTS & seen.valid_BS[:, None]
        if seen.starts_BT is not None:
            seen_BTS = seen_BTS & (jnp.arange(distance_TS.shape[1]) >= seen.starts_BT[..., None])
        return jnp.where(seen_BTS, 0.0, MASKED)[:, None, None]
