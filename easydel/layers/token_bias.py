"""Biases on scores that each query mixes from learned profiles over distance (Thinking Machines Lab 2026, Inkling)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.layers.linear import Linear, parameter
from easydel.layers.norm import L2Clip
from easydel.policy import Policy

# B batch, T queries of this call, R some of them, S key slots, D model, N heads, W profiles, L distances from any of R


@dataclass(frozen=True)
class TokenBias:
    """A bias for distances 0 to `extent` - 1, and none beyond: each head of a query mixes `profiles` of them.

    `clip` limits the length of a mix's weights.
    """

    profiles: int
    extent: int
    clip: L2Clip | None = None

    def build(self, heads: int, features: int, policy: Policy) -> TokenBiasModule:
        return TokenBiasModule(self, heads, features, policy)


class TokenBiasModule(nnx.Module):
    """The profiles, `table` [profiles, extent], and a projection to weights of them."""

    def __init__(self, record: TokenBias, heads: int, features: int, policy: Policy):
        self.r_proj = Linear(features, heads * record.profiles, policy)
        self.clip = None if record.clip is None else record.clip.build((heads, record.profiles), policy)
        self.table = parameter((record.profiles, record.extent), policy)
        self.record, self.policy = record, policy

    def mix(self, x_BTD: jax.Array) -> jax.Array:
        """Returns the weights of profiles [B, T, N, W]."""
        mix_BTNW = self.r_proj(x_BTD).reshape(*x_BTD.shape[:2], -1, self.record.profiles)
        return mix_BTNW if self.clip is None else self.clip(mix_BTNW)

    def bias(
        self, mix_BTNW: jax.Array, slots: int, offset: jax.Array | int
    ) -> Callable[[jax.Array | int, int], jax.Array]:
        """Returns the bias of the queries that have these weights. Query t is in slot `offset` + t."""

        def bias(start: jax.Array | int, queries: int) -> jax.Array:
            # Column l is the bias at distance last - l: row t has key s in column s - t + queries - 1. Read as rows of
            # one column less, all rows have it in the same column.
            own_BRNW = jax.lax.dynamic_slice_in_dim(mix_BTNW, start, queries, axis=1)
            columns = slots + queries
            distance_L = offset + start + queries - 1 - jnp.arange(columns)
            near_L = (distance_L >= 0) & (distance_L < self.record.extent)
            table_WL = jnp.where(near_L, jnp.take(self.table[...], distance_L, axis=1, mode="clip"), 0)
            wide = {"precision": self.policy.precision, "preferred_element_type": jnp.float32}
            all_BNRL = jnp.einsum("BRNW,WL->BNRL", own_BRNW, table_WL.astype(own_BRNW.dtype), **wide)
            flat = all_BNRL.reshape(*all_BNRL.shape[:2], -1)[..., queries - 1 : queries - 1 + queries * (columns - 1)]
            return flat.reshape(*flat.shape[:2], queries, columns - 1)[..., :slots]

        return bias
