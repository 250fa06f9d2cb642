"""Keys that stand for several tokens each (DeepSeek-V4, DeepSeek-AI 2026), and the choice of some of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.layers.context import Context
from easydel.layers.indexer import best_keys
from easydel.layers.kv_cache import places, reachable, with_earlier
from easydel.layers.linear import Linear, exact
from easydel.layers.norm import RMSNorm
from easydel.layers.part import Cached, Part, empty
from easydel.layers.rope import Rope
from easydel.policy import Policy

# B batch, T tokens of this call, D model, R the queries' latent, L tokens with earlier ones, C channels of an entry,
# W entries that this call completes at most, M tokens of one entry, E all entries, H heads, K chosen entries
State = dict[str, Cached]


@dataclass(frozen=True)
class Compressor(Part):
    """Makes an entry of `dim` channels of every `rate` tokens: for each channel, a mean weighted by a softmax.

    If `overlapping`, an entry is made of the tokens of the entry before it too, by other projections of them.
    `position` rotates an entry by the position of the first of its own tokens.
    """

    name: ClassVar[str] = "compressor"
    rate: int
    dim: int
    position: Rope
    norm: RMSNorm
    overlapping: bool = False

    @property
    def reach(self) -> int:
        """Number of tokens, the last one included, that an entry is made of."""
        return self.rate * (2 if self.overlapping else 1)

    @property
    def width(self) -> int:
        """Channels of the projections of a token."""
        return self.dim * (2 if self.overlapping else 1)

    def build(self, features: int, policy: Policy) -> CompressorLayer:
        return CompressorLayer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> State:
        """Returns no entries, and places for the projections of the tokens that the next entries are made of."""
        shape = (batch, 1, places(length, self.reach), self.width)
        tokens = {name: empty(shape, dtype, "batch", None, None, None) for name in ("kv", "gate")}
        return tokens | {"entries": empty((batch, max(length // self.rate, 1), self.dim), dtype, "batch", None, None)}

    def rewinds(self, length: int, end: int) -> int | None:
        return reachable(length, self.reach, end)

    def complete(self, context: Context, length: int) -> jax.Array:
        """Returns how many entries each of `length` tokens can see, [B, T]: those that end at it or before it."""
        slots_T = context.offset + jnp.arange(length)
        return jnp.maximum((slots_T - first_slots(context) + 1) // self.rate, 0)


class CompressorLayer(nnx.Module):
    def __init__(self, record: Compressor, features: int, policy: Policy):
        self.kv_proj = Linear(features, record.width, policy)
        self.gate_proj = Linear(features, record.width, policy)
        self.position_bias = exact((record.rate, record.width), policy)
        self.kv_norm = record.norm.build(record.dim, policy)
        self.compression = record

    def entries(self, x_BTD: jax.Array, context: Context, cache: State | None) -> tuple[jax.Array, State | None]:
        """Returns all entries so far, [B, E, C], and the new cache. Entries that lack tokens have no meaning yet."""
        record, T = self.compression, x_BTD.shape[1]
        new = {"kv": self.kv_proj(x_BTD)[:, None], "gate": self.gate_proj(x_BTD)[:, None]}
        tokens, before = new, 0
        if cache is not None:
            kept = {name: cache[name] for name in new}
            new = {name: part.astype(kept[name].array.dtype) for name, part in new.items()}
            kept, tokens, _, before = with_earlier(kept, new, context, record.reach - 1)
            cache = cache | kept
        first_B1 = first_slots(context)
        entry_BW = jnp.maximum(context.offset - first_B1, 0) // record.rate + jnp.arange(-(-T // record.rate))
        made_BWC = self._made(tokens, entry_BW, first_B1 - context.offset + before)
        if cache is None:
            return made_BWC, None
        old = cache["entries"]
        batch_B1 = jnp.arange(x_BTD.shape[0])[:, None]
        all_BEC = old.array.at[batch_B1, entry_BW].set(made_BWC.astype(old.array.dtype), mode="drop")
        return all_BEC, cache | {"entries": replace(old, array=all_BEC)}

    def _made(self, tokens: dict[str, jax.Array], entry_BW: jax.Array, first_B1: jax.Array) -> jax.Array:
        """Returns these entries; `first_B1` is the place among `tokens` of each row's first one."""
        record, (B, W) = self.compression, entry_BW.shape
        windows = jnp.arange(-1 if record.overlapping else 0, W) + entry_BW[:, :1]
        positions = (windows[..., None] * record.rate + jnp.arange(record.rate)).reshape(B, -1)

        def by_window(name: str) -> jax.Array:
            found = jnp.take_along_axis(tokens[name][:, 0], (positions + first_B1)[..., None], axis=1, mode="clip")
            return found.reshape(*windows.shape, record.rate, record.width)

        kv, gate = by_window("kv"), by_window("gate").astype(jnp.float32)
        gate = gate + self.position_bias[...].astype(jnp.float32)
        gate = jnp.where((windows >= 0)[..., None, None], gate, -jnp.inf)  # before the first entry there is none
        if record.overlapping:
            kv, gate = (_overlapped(part, record.dim) for part in (kv, gate))
        mean_BWC = jnp.sum(kv * jax.nn.softmax(gate, axis=2).astype(kv.dtype), axis=2)
        angles = record.position.angles(entry_BW * record.rate)
        return record.position.rotate(self.kv_norm(mean_BWC)[:, :, None], angles)[:, :, 0]


@dataclass(frozen=True)
class EntryIndexer(Part):
    """Chooses the `count` entries with the highest scores for each query, as `Indexer` chooses slots.

    It has entries of its own, made by `keys`.
    """

    name: ClassVar[str] = "indexer"
    heads: int
    count: int
    q_rank: int
    keys: Compressor

    def build(self, features: int, policy: Policy) -> EntryIndexerLayer:
        return EntryIndexerLayer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> State:
        return self.keys.cache(batch, length, dtype)

    def ropes(self) -> Iterable[Rope]:
        yield self.keys.position

    def rewinds(self, length: int, end: int) -> int | None:
        return self.keys.rewinds(length, end)


class EntryIndexerLayer(CompressorLayer):
    def __init__(self, record: EntryIndexer, features: int, policy: Policy):
        super().__init__(record.keys, features, policy)
        self.q_b_proj = Linear(record.q_rank, record.heads * record.keys.dim, policy)
        self.weights_proj = Linear(features, record.heads, policy)
        self.record, self.precision = record, policy.precision

    def __call__(
        self, read: tuple[jax.Array, jax.Array], context: Context, cache: State | None
    ) -> tuple[jax.Array | None, State | None]:
        """Returns the chosen entries [B, T, K], or None where all are; `read` is the input and the queries' latent."""
        record, (x_BTD, latent_BTR) = self.record, map(jax.lax.stop_gradient, read)
        k_BEC, cache = self.entries(x_BTD, context, cache)
        if k_BEC.shape[1] <= record.count:
            return None, cache
        dim, position = record.keys.dim, record.keys.position
        q_BTHC = self.q_b_proj(latent_BTR).reshape(*x_BTD.shape[:2], record.heads, dim)
        q_BTHC = position.rotate(q_BTHC, context.angles(position))
        weights_BTH = self.weights_proj(x_BTD).astype(jnp.float32) * (record.heads * dim) ** -0.5
        last_BT = jnp.broadcast_to(record.keys.complete(context, x_BTD.shape[1]) - 1, x_BTD.shape[:2])
        seen = (jnp.zeros_like(last_BT), last_BT)
        return jax.lax.stop_gradient(
            best_keys(q_BTHC, weights_BTH, k_BEC, seen, None, record.count, self.precision)
        ), cache


def first_slots(context: Context) -> jax.Array:
    """Returns the slot of each row's first attended token, [B, 1]; a row's attended tokens are in adjacent slots."""
    if context.valid_BS is None:
        return jnp.zeros((context.positions_BT.shape[0], 1), jnp.int32)
    return jnp.argmax(context.valid_BS, axis=1, keepdims=True)


def _overlapped(part: jax.Array, dim: int) -> jax.Array:
    """Puts beside each window's last channels the first ones of the window before it."""
    return jnp.concatenate([part[:, :-1, :, :dim], part[:, 1:, :, dim:]], axis=2)
