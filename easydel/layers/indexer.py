"""The lightning indexer of DeepSeek Sparse Attention (DeepSeek-AI 2025, arXiv:2512.02556): which keys a query sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.layers.context import Context
from easydel.layers.linear import Linear
from easydel.layers.norm import LayerNorm
from easydel.layers.part import Cached, Handed, Part, empty
from easydel.layers.rope import Rope
from easydel.ops.attend import Select
from easydel.policy import Policy

# B batch, T queries of this call, S slots, D model, R the queries' latent, H heads, C channels, K chosen slots
CHOSEN = "chosen"
ROWS = 256  # queries whose scores are in memory at once


@dataclass(frozen=True)
class Indexer(Part):
    """Chooses the `count` slots with the highest scores for each query, of those that it may see, and hands them on.

    A score is the sum over `heads` of weight * relu(query * key), with one key of `dim` channels for all heads, which
    are cached. Queries come from a latent of `q_rank` channels; `position` rotates the first channels of both.
    """

    name: ClassVar[str] = "indexer"
    heads: int
    dim: int
    count: int
    q_rank: int
    position: Rope
    norm: LayerNorm

    def build(self, features: int, policy: Policy) -> IndexerLayer:
        return IndexerLayer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> Cached:
        """Returns empty keys, [batch, length, dim]."""
        return empty((batch, length, self.dim), dtype, "batch", None, None)

    def ropes(self) -> Iterable[Rope]:
        yield self.position

    def hands_on(self) -> Iterable[str]:
        yield CHOSEN

    def rewinds(self, length: int, end: int) -> int | None:
        return None


class IndexerLayer(nnx.Module):
    def __init__(self, record: Indexer, features: int, policy: Policy):
        self.wq_b = Linear(record.q_rank, record.heads * record.dim, policy)
        self.wk = Linear(features, record.dim, policy)
        self.k_norm = record.norm.build(record.dim, policy)
        self.weights_proj = Linear(features, record.heads, policy)
        self.record, self.precision = record, policy.precision

    def __call__(
        self, read: tuple[jax.Array, jax.Array], context: Context, cache: Cached | None
    ) -> tuple[Handed, Cached | None]:
        """Returns a `Select`, or None where all is seen, with the chosen slots; `read` is the input and the latent."""
        record, (x_BTD, latent_BTR) = self.record, map(jax.lax.stop_gradient, read)
        angles = context.angles(record.position)
        q_BTHC = self.wq_b(latent_BTR).reshape(*x_BTD.shape[:2], record.heads, record.dim)
        q_BTHC = record.position.rotate(q_BTHC, angles)
        k_BSC = record.position.rotate(self.k_norm(self.wk(x_BTD))[:, :, None], angles)[:, :, 0]
        weights_BTH = self.weights_proj(x_BTD).astype(jnp.float32) * (record.heads * record.dim) ** -0.5
        if cache is not None:
            cache = cache.written(k_BSC, context.offset, 1)
            k_BSC = cache.array
        slots = k_BSC.shape[1]
        if slots <= record.count:  # of so few, all are chosen
            chosen_BTK = jnp.zeros((*x_BTD.shape[:2], 0), jnp.int32)
        else:
            last_BT = jnp.broadcast_to(context.offset + jnp.arange(x_BTD.shape[1]), x_BTD.shape[:2])
            first_BT = jnp.zeros_like(last_BT) if context.starts_BT is None else context.starts_BT
            seen = (first_BT, last_BT)
            found = best_keys(q_BTHC, weights_BTH, k_BSC, seen, context.valid_BS, record.count, self.precision)
            chosen_BTK = jax.lax.stop_gradient(found)
        return Handed(selected(chosen_BTK, slots), {CHOSEN: chosen_BTK}), cache


def best_keys(
    q_BTHC: jax.Array,
    weights_BTH: jax.Array,
    k_BSC: jax.Array,
    seen: tuple[jax.Array, jax.Array],
    valid_BS: jax.Array | None,
    count: int,
    precision: Any,
) -> jax.Array:
    """Returns the `count` keys with the highest scores for each query, [B, T, K], computed for a few queries at a time.

    `seen` are the first and the last key that each query may see, [B, T] both. Where a query sees fewer than `count`,
    others are among them.
    """

    def choose(q_BRHC: jax.Array, weights_BRH: jax.Array, first_BR: jax.Array, last_BR: jax.Array) -> jax.Array:
        wide: Any = {"precision": precision, "preferred_element_type": jnp.float32}
        scores_BRHS = jax.nn.relu(jnp.einsum("BRHC,BSC->BRHS", q_BRHC, k_BSC, **wide))
        scores_BRS = jnp.einsum("BRHS,BRH->BRS", scores_BRHS, weights_BRH, precision=precision)
        keys_S = jnp.arange(k_BSC.shape[1])
        seen_BRS = (keys_S <= last_BR[..., None]) & (keys_S >= first_BR[..., None])
        if valid_BS is not None:
            seen_BRS = seen_BRS & valid_BS[:, None]
        return jax.lax.top_k(jnp.where(seen_BRS, scores_BRS, -jnp.inf), count)[1]

    return by_pieces(choose, q_BTHC, weights_BTH, *seen)


@dataclass(frozen=True)
class SharedIndexer(Part):
    """Takes over the slots that the last `Indexer` before it chose: it has no parameters."""

    name: ClassVar[str] = "indexer"

    def build(self, features: int, policy: Policy) -> SharedIndexerLayer:
        return SharedIndexerLayer()

    def rewinds(self, length: int, end: int) -> int | None:
        return None


class SharedIndexerLayer(nnx.Module):
    def __call__(self, read: tuple[jax.Array, jax.Array], context: Context, cache: Any) -> tuple[Select | None, Any]:
        assert context.valid_BS is not None or cache is None
        slots = read[0].shape[1] if context.valid_BS is None else context.valid_BS.shape[1]
        return selected(context.handed[CHOSEN], slots), cache


def selected(chosen_BTK: jax.Array, slots: int) -> Select | None:
    """Returns the choice of slots as attention takes it; None if there was none to make."""
    if chosen_BTK.shape[-1] == 0:
        return None

    def select(start: jax.Array | int, queries: int) -> jax.Array:
        own_BRK = jax.lax.dynamic_slice_in_dim(chosen_BTK, start, queries, axis=1)
        nothing_BRS = jnp.zeros((*own_BRK.shape[:2], slots), bool)
        return jnp.put_along_axis(nothing_BRS, own_BRK, True, axis=-1, inplace=False)[:, None]

    return select


def by_pieces(function: Callable[..., jax.Array], *parts: jax.Array) -> jax.Array:
    """Returns function(*parts), which are [B, T, ...] as the result is, computed for `ROWS` of T at a time."""
    batch, length = parts[0].shape[:2]
    rows = min(ROWS, length)

    def pieces(part: jax.Array) -> jax.Array:
        padded = jnp.pad(part, [(0, 0), (0, -length % rows)] + [(0, 0)] * (part.ndim - 2))
        return jnp.moveaxis(padded.reshape(batch, -1, rows, *part.shape[2:]), 1, 0)

    found = jnp.moveaxis(jax.lax.map(lambda piece: function(*piece), tuple(map(pieces, parts))), 0, 1)
    return found.reshape(batch, -1, *found.shape[3:])[:, :length]
