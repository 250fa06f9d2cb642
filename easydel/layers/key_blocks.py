"""What indexers that choose blocks of keys share: their sizes, their projections, and keys by position."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.errors import ConfigError
from easydel.layers.context import Context, counted
from easydel.layers.linear import Linear
from easydel.layers.norm import AnyNorm
from easydel.layers.part import Cached, Part, empty
from easydel.layers.rope import Rope
from easydel.policy import Policy

# B batch, T queries of this call, S slots, P positions, D model, H heads of the indexer, C channels


@dataclass(frozen=True)
class ChoosesBlocks(Part):
    """Chooses `count` blocks of `block` neighbouring keys for each query, by `heads` queries and one key of `dim`.

    Padding is in no block: keys are cached by their positions.
    """

    name: ClassVar[str] = "indexer"
    heads: int
    dim: int
    block: int
    count: int
    position: Rope
    norm: AnyNorm

    def __post_init__(self) -> None:
        if self.position.dim > self.dim:
            raise ConfigError(
                f"an indexer's {self.dim} channels are fewer than the {self.position.dim} that are rotated"
            )

    def cache(self, batch: int, length: int, dtype: Any) -> Cached:
        """Returns empty keys, [batch, length, dim]."""
        return empty((batch, length, self.dim), dtype, "batch", None, None)

    def ropes(self) -> Iterable[Rope]:
        yield self.position

    def rewinds(self, length: int, end: int) -> int | None:
        return None


class ChoosesBlocksLayer(nnx.Module):
    def __init__(self, record: ChoosesBlocks, features: int, policy: Policy):
        self.wq = Linear(features, record.heads * record.dim, policy)
        self.wk = Linear(features, record.dim, policy)
        self.q_norm, self.k_norm = record.norm.build(record.dim, policy), record.norm.build(record.dim, policy)
        self.precision = policy.precision

    def queries(self, x_BTD: jax.Array, record: ChoosesBlocks, context: Context) -> jax.Array:
        """Returns normed and rotated queries [B, T, H, C]."""
        q_BTHC = self.q_norm(self.wq(x_BTD).reshape(*x_BTD.shape[:2], record.heads, record.dim))
        return record.position.rotate(q_BTHC, context.angles(record.position))


def held_positions(length: int, context: Context) -> tuple[jax.Array, jax.Array]:
    """Returns the position of each slot [B or 1, S], counting attended tokens, and those of this call's [B or 1, T]."""
    valid_BS = context.valid_BS
    held_BS = jnp.arange(length)[None] if valid_BS is None else counted(valid_BS, None)
    return held_BS, jax.lax.dynamic_slice_in_dim(held_BS, context.offset, length, axis=1)


def by_position(k_BTC: jax.Array, own_BT: jax.Array, context: Context, cache: Cached | None) -> jax.Array:
    """Returns keys by their positions [B, P, C]: those of the cache, with this call's; those of padding are nowhere."""
    if context.valid_BS is None:
        return k_BTC
    (batch, slots), dim = context.valid_BS.shape, k_BTC.shape[-1]
    held_BPC = jnp.zeros((batch, slots, dim), k_BTC.dtype) if cache is None else cache.array
    at_BT = own_BT if context.valid_BT is None else jnp.where(context.valid_BT, own_BT, slots)
    return held_BPC.at[jnp.arange(batch)[:, None], at_BT].set(k_BTC.astype(held_BPC.dtype), mode="drop")
