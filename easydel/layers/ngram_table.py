"""Vectors of n-grams of tokens, from hashed tables (Qwen Team 2026, the model card of Qwen4-Exp)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.errors import ConfigError
from easydel.layers.context import Context
from easydel.layers.linear import Embedding, parameter
from easydel.layers.part import Cached, empty
from easydel.ops.ngram_hash import hashed, primes_from, splitmix64
from easydel.policy import Policy

# B batch, T length, W earlier tokens, H tables, C channels of a table
SEED_STEP, STATE_STEP = 10007, 0x9E3779B97F4A7C15  # of the checkpoints' training


@dataclass(frozen=True)
class NGramTable:
    """Vectors of `dim` channels for the last 2, 3, ... `order` tokens, by `heads` hashed tables for each of these.

    No n-gram reaches over a `separator`. The size of each table is a prime of its own, from `base` on; the layer's
    `index` among those with tables, the `seed` and the size of the vocabulary `vocab` determine sizes and factors. All
    tables are one, of a multiple of `divisor` rows, which is stored in `parts`; the last of them may be shorter.
    """

    vocab: int
    order: int
    heads: int
    dim: int
    base: int
    divisor: int
    parts: int
    index: int
    seed: int
    separator: int

    def __post_init__(self) -> None:
        if self.dim % self.tables:
            raise ConfigError(f"{self.dim} channels cannot be split over {self.tables} tables of n-grams")
        if max(self.sizes) >= 1 << 28:
            raise ConfigError(f"a table of n-grams has {max(self.sizes)} rows, expected less than 2 ** 28")

    @property
    def tables(self) -> int:
        return (self.order - 1) * self.heads

    @cached_property
    def sizes(self) -> list[int]:
        """Rows of each table."""
        return primes_from(self.base, (self.index + 1) * self.tables)[-self.tables :]

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return -(-sum(self.sizes) // self.divisor) * self.divisor

    @property
    def part(self) -> int:
        """Rows of a part."""
        return -(-self.rows // self.parts)

    @property
    def factors(self) -> list[int]:
        """The number that each token of an n-gram is multiplied with; odd, and products stay below 2 ** 63."""
        half = max(1, ((1 << 63) - 1) // self.vocab // 2)
        states = (self.seed + SEED_STEP * self.index + STATE_STEP * (place + 1) for place in range(self.order))
        return [2 * (splitmix64(state) % half) + 1 for state in states]

    def build(self, policy: Policy) -> NGramTableModule:
        return NGramTableModule(self, policy)

    def cache(self, batch: int) -> Cached:
        """Returns the last tokens, plus one: 0 is none."""
        return empty((batch, self.order - 1), jnp.int32, "batch", None)


class NGramTableModule(nnx.Module):
    """The tables one after the other, `embedding` [equal parts, rows, channels], and in `last` a shorter part."""

    def __init__(self, record: NGramTable, policy: Policy):
        channels, (parts, rest) = record.dim // record.tables, divmod(record.rows, record.part)
        self.embedding = parameter((parts, record.part, channels), policy)
        self.last = nnx.Dict({str(parts): Embedding(rest, channels, policy)} if rest else {})
        self.record, self.policy = record, policy

    def __call__(self, context: Context, past: Cached | None) -> tuple[jax.Array, jax.Array]:
        """Returns the vectors [B, T, dim], and the last tokens as the cache has them."""
        record, ids_BT = self.record, context.ids_BT
        assert ids_BT is not None
        valid_BT = jnp.ones_like(ids_BT, bool) if context.valid_BT is None else context.valid_BT
        known_BT = jnp.where(valid_BT, ids_BT, record.separator) + 1
        before_BW = jnp.zeros((ids_BT.shape[0], record.order - 1), jnp.int32) if past is None else past.array
        tokens = jnp.concatenate([before_BW, known_BT.astype(jnp.int32)], axis=1)
        offsets = [sum(record.sizes[:table]) for table in range(record.tables)]
        rows_BTH = self._rows(jnp.where(tokens == 0, record.separator, tokens - 1)) + jnp.asarray(offsets, jnp.int32)
        # Parts are not put together: where their rows do not fill tiles, a TPU would copy all of them.
        parts, within_BTH = self.embedding[...], rows_BTH % record.part
        found_BTHC = parts.at[rows_BTH // record.part, within_BTH].get(mode="clip").astype(self.policy.dtype)
        for last in self.last.values():
            beyond_BTH = rows_BTH - parts.shape[0] * record.part
            found_BTHC = jnp.where((beyond_BTH < 0)[..., None], found_BTHC, last(jnp.maximum(beyond_BTH, 0)))
        return found_BTHC.reshape(*ids_BT.shape, -1), tokens[:, ids_BT.shape[1] :]

    def _rows(self, tokens: jax.Array) -> jax.Array:
        """Returns the row in each table, of the tokens after the first order - 1."""
        record, earlier = self.record, self.record.order - 1
        length = tokens.shape[1] - earlier
        shifted: list[Any] = [tokens[:, earlier:]]
        unbroken = jnp.ones_like(shifted[0], bool)
        for back in range(1, record.order):
            token = tokens[:, earlier - back : earlier - back + length]
            unbroken = unbroken & (token != record.separator)
            shifted.append(jnp.where(unbroken, token, record.separator))
        found = []
        for count in range(2, record.order + 1):
            own = record.sizes[(count - 2) * record.heads : (count - 1) * record.heads]
            found.append(hashed(shifted[:count], record.factors[:count], own))
        return jnp.concatenate(found, axis=-1)
