"""Learned biases on attention scores by relative position (Raffel et al. 2020, arXiv:1910.10683)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from easydel.errors import ConfigError
from easydel.layers.linear import parameter
from easydel.layers.part import Part
from easydel.policy import Policy


@dataclass(frozen=True)
class RelativeBias(Part):
    """One bias per head and bucket of distances, from a table of each layer's own or one that all layers share.

    `shared` is the name of the shared table. Half of the buckets hold one distance each; the others grow
    logarithmically up to `max_distance`. `bidirectional` splits the buckets between keys before and after the query;
    otherwise all later keys use the bucket of distance 0.
    """

    heads: int
    buckets: int
    max_distance: int
    bidirectional: bool
    shared: str | None = None

    def __post_init__(self) -> None:
        exact = self.buckets // (4 if self.bidirectional else 2)
        if exact < 1 or self.max_distance <= exact:
            raise ConfigError(f"{self.buckets} buckets of distances up to {self.max_distance} cannot be laid out")

    def build(self, features: int, policy: Policy) -> RelativeBiasTable:
        return RelativeBiasTable(self, policy)

    def bucket(self, distance: jax.Array) -> jax.Array:
        """Returns the table's row for a distance, which is key position - query position."""
        half = self.buckets // 2 if self.bidirectional else self.buckets
        away = jnp.abs(distance) if self.bidirectional else jnp.maximum(-distance, 0)
        row = jnp.asarray(self._rows(half))[jnp.minimum(away, self.max_distance)]
        return row + half * (distance > 0) if self.bidirectional else row

    def _rows(self, buckets: int) -> np.ndarray:
        """Returns the bucket of each distance from 0 to `max_distance`."""
        exact, distance = buckets // 2, np.arange(self.max_distance + 1, dtype=np.float32)
        # float32 throughout: at the edge of a bucket the rounding decides, and checkpoints were trained with this one
        steps = np.log(np.maximum(distance, 1) / np.float32(exact)) / np.float32(math.log(self.max_distance / exact))
        grown = exact + (steps * np.float32(buckets - exact)).astype(np.int32)
        return np.where(distance < exact, distance, np.minimum(grown, buckets - 1)).astype(np.int32)


class RelativeBiasTable(nnx.Module):
    """The table of biases, `embedding` [buckets, heads]."""

    def __init__(self, record: RelativeBias, policy: Policy):
        self.embedding = parameter((record.buckets, record.heads), policy)
        self.record = record

    def __call__(self, slots: int, offset: jax.Array | int) -> Callable[[jax.Array | int, int], jax.Array]:
        """Returns a bias, (first query, queries) -> [1, N, queries, slots]. Query t is in slot `offset` + t."""

        def bias(start: jax.Array | int, queries: int) -> jax.Array:
            # Row t of the result is row 0 shifted right by t. Repeating a row of slots + queries biases, and cutting it
            # every slots + queries - 1, shifts it by one: that needs no look-up per score.
            period = slots + queries
            around = jnp.arange(period)
            distance = jnp.where(around < slots, around, around - period) - start - offset
            row = self.embedding[...].astype(jnp.float32)[self.record.bucket(distance)].T
            rows = jnp.tile(row, (1, queries))[:, : queries * (period - 1)]
            return rows.reshape(1, self.record.heads, queries, period - 1)[..., :slots]

        return bias
