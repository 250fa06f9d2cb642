"""Which blocks of keys a query sees, by the mean of the keys in each (Qwen Team 2026, the model card of Qwen4-Exp)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from easydel.layers.context import Context
from easydel.layers.indexer import by_pieces
from easydel.layers.key_blocks import ChoosesBlocks, ChoosesBlocksLayer, by_position, held_positions
from easydel.layers.part import Cached
from easydel.ops.attend import Select
from easydel.policy import Policy

# B batch, T queries of this call, R some of them, S slots, P positions, D model, H heads, C channels, L blocks,
# K chosen blocks


@dataclass(frozen=True)
class PooledIndexer(ChoosesBlocks):
    """Chooses the `count` blocks of `block` neighbouring keys with the highest scores, and the last, unfinished block.

    A score is the sum over `heads` of relu(query * key), with one key of `dim` channels for all heads: the normed mean
    of a block's, rotated as its first token is.
    """

    def carries(self, tokens: int) -> str:
        return "" if self.chooses_all(tokens) else "attention to chosen blocks"

    def chooses_all(self, positions: int) -> bool:
        """True if there are no more whole blocks than are chosen."""
        return positions // self.block <= self.count

    def build(self, features: int, policy: Policy) -> PooledIndexerLayer:
        return PooledIndexerLayer(self, features, policy)


class PooledIndexerLayer(ChoosesBlocksLayer):
    def __init__(self, record: PooledIndexer, features: int, policy: Policy):
        super().__init__(record, features, policy)
        self.record = record

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Cached | None) -> tuple[Select | None, Cached | None]:
        """Returns the choice of keys, or None where all are seen, and the new cache."""
        record, x_BTD = self.record, jax.lax.stop_gradient(x_BTD)
        held_BS, own_BT = held_positions(x_BTD.shape[1], context)
        k_BPC = by_position(self.wk(x_BTD), own_BT, context, cache)
        cache = None if cache is None else replace(cache, array=k_BPC)
        if record.chooses_all(k_BPC.shape[1]):
            return None, cache
        blocks = k_BPC.shape[1] // record.block
        chosen_BTK = self._chosen(self.queries(x_BTD, record, context), own_BT, self._pooled(k_BPC, blocks))
        return self._select(jax.lax.stop_gradient(chosen_BTK), own_BT, held_BS), cache

    def _pooled(self, k_BPC: jax.Array, blocks: int) -> jax.Array:
        """Returns the keys of whole blocks [B, L, C]."""
        position, size = self.record.position, self.record.block
        k_BLSC = k_BPC[:, : blocks * size].reshape(k_BPC.shape[0], blocks, size, -1)
        mean_BLC = jnp.mean(k_BLSC, axis=2, dtype=jnp.float32).astype(k_BPC.dtype)  # 16 bits would round each sum
        first_1L = (jnp.arange(blocks) * size)[None]
        return position.rotate(self.k_norm(mean_BLC)[:, :, None], position.angles(first_1L))[:, :, 0]

    def _chosen(self, q_BTHC: jax.Array, own_BT: jax.Array, k_BLC: jax.Array) -> jax.Array:
        """Returns the chosen blocks [B, T, K], computed for a few queries at a time."""
        record = self.record
        ends_L = (jnp.arange(k_BLC.shape[1]) + 1) * record.block

        def choose(q_BRHC: jax.Array, own_BR: jax.Array) -> jax.Array:
            wide: Any = {"precision": self.precision, "preferred_element_type": jnp.float32}
            scores_BRHL = jax.nn.relu(jnp.einsum("BRHC,BLC->BRHL", q_BRHC, k_BLC, **wide))
            whole_BRL = ends_L <= own_BR[..., None] + 1
            return jax.lax.top_k(jnp.where(whole_BRL, jnp.sum(scores_BRHL, axis=2), -jnp.inf), record.count)[1]

        return by_pieces(choose, q_BTHC, jnp.broadcast_to(own_BT, q_BTHC.shape[:2]))

    def _select(self, chosen_BTK: jax.Array, own_BT: jax.Array, held_BS: jax.Array) -> Select:
        size = self.record.block
        block_B1S, last_BT = jnp.maximum(held_BS, 0)[:, None] // size, (own_BT + 1) // size

        def select(start: jax.Array | int, queries: int) -> jax.Array:
            own_BRK = jax.lax.dynamic_slice_in_dim(chosen_BTK, start, queries, axis=1)
            last_BR = jax.lax.dynamic_slice_in_dim(last_BT, start, queries, axis=1)
            chosen_BRS = jnp.any(own_BRK[..., None] == block_B1S[:, :, None], axis=-2)
            # beyond the whole blocks is the unfinished one; causality leaves nothing else
            return (chosen_BRS | (block_B1S >= last_BR[..., None]))[:, None]

        return select
