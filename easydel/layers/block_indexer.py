"""Which blocks of keys a query sees, by the best key in each (MiniMax 2026, the model card of MiniMaxAI/MiniMax-M3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from easydel.errors import ConfigError
from easydel.layers.context import Context
from easydel.layers.indexer import by_pieces
from easydel.layers.key_blocks import ChoosesBlocks, ChoosesBlocksLayer, by_position, held_positions
from easydel.layers.part import Cached
from easydel.ops.attend import Select
from easydel.policy import Policy

# B batch, T queries of this call, R some of them, S slots, P positions, D model, H heads of the indexer, C channels,
# N heads of the attention, L blocks, K chosen blocks


@dataclass(frozen=True)
class BlockIndexer(ChoosesBlocks):
    """Chooses the `count` blocks of `block` neighbouring keys that have the highest scores, for each query and head.

    A block's score is its best key's: query * key, with one key of `dim` channels for all `heads`. The `local` blocks
    up to the query's own come before all others. The attention's `readers` heads are split evenly among `heads`, and
    see what theirs chose.
    """

    local: int
    readers: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.readers % self.heads:
            raise ConfigError(f"{self.readers} heads cannot be split among {self.heads} of an indexer")

    def carries(self, tokens: int) -> str:
        return "" if self.chooses_all(tokens) else "attention to chosen blocks"

    def chooses_all(self, positions: int) -> bool:
        """True if there are no more blocks than are chosen."""
        return positions <= self.count * self.block

    def build(self, features: int, policy: Policy) -> BlockIndexerLayer:
        return BlockIndexerLayer(self, features, policy)


class BlockIndexerLayer(ChoosesBlocksLayer):
    def __init__(self, record: BlockIndexer, features: int, policy: Policy):
        super().__init__(record, features, policy)
        self.record = record

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Cached | None) -> tuple[Select | None, Cached | None]:
        """Returns the choice of keys, or None where all are seen, and the new cache."""
        record, x_BTD = self.record, jax.lax.stop_gradient(x_BTD)
        k_BT1C = self.k_norm(self.wk(x_BTD))[:, :, None]
        k_BTC = record.position.rotate(k_BT1C, context.angles(record.position))[:, :, 0]
        held_BS, own_BT = held_positions(x_BTD.shape[1], context)
        k_BPC = by_position(k_BTC, own_BT, context, cache)
        cache = None if cache is None else replace(cache, array=k_BPC)
        if record.chooses_all(k_BPC.shape[1]):
            return None, cache
        chosen_BTHK = self._chosen(self.queries(x_BTD, record, context), own_BT, k_BPC)
        return self._select(jax.lax.stop_gradient(chosen_BTHK), held_BS), cache

    def _chosen(self, q_BTHC: jax.Array, own_BT: jax.Array, k_BPC: jax.Array) -> jax.Array:
        """Returns the chosen blocks [B, T, H, K], computed for a few queries at a time."""
        record, positions = self.record, k_BPC.shape[1]
        blocks = -(-positions // record.block)
        k_BPC = jnp.pad(k_BPC, ((0, 0), (0, blocks * record.block - positions), (0, 0)))

        def choose(q_BRHC: jax.Array, own_BR: jax.Array) -> jax.Array:
            wide: Any = {"precision": self.precision, "preferred_element_type": jnp.float32}
            scores_BRHP = jnp.einsum("BRHC,BPC->BRHP", q_BRHC, k_BPC, **wide)
            own_BR11 = own_BR[..., None, None]
            scores_BRHP = jnp.where(jnp.arange(k_BPC.shape[1]) <= own_BR11, scores_BRHP, -jnp.inf)
            best_BRHL = jnp.max(scores_BRHP.reshape(*scores_BRHP.shape[:-1], blocks, record.block), axis=-1)
            before_BR1L = own_BR11 // record.block - jnp.arange(blocks)
            near_BR1L = (before_BR1L >= 0) & (before_BR1L < record.local)
            return jax.lax.top_k(jnp.where(near_BR1L, jnp.inf, best_BRHL), record.count)[1]

        return by_pieces(choose, q_BTHC, jnp.broadcast_to(own_BT, q_BTHC.shape[:2]))

    def _select(self, chosen_BTHK: jax.Array, held_BS: jax.Array) -> Select:
        record = self.record
        block_BS = jnp.maximum(held_BS, 0) // record.block

        def select(start: jax.Array | int, queries: int) -> jax.Array:
            own_BRHK = jax.lax.dynamic_slice_in_dim(chosen_BTHK, start, queries, axis=1)
            seen_BRHS = jnp.any(own_BRHK[..., None] == block_BS[:, None, None, None], axis=-2)
            return jnp.repeat(seen_BRHS.swapaxes(1, 2), record.readers // record.heads, axis=1)

        return select
