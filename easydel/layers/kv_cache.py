"""Keys and values kept from call to call: of the whole sequence, or of its end for layers with a window.

Slot s of the sequence lies at place s of the cache, or at s modulo the number of places if there are fewer. A token
there overwrites one that has left the window of all later tokens. `reachable` says how far back a caller may go.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from easydel.layers.context import Context
from easydel.layers.part import Cached, empty
from easydel.ops.attend import Around, Scores
from easydel.ops.sight import is_causal, reach
from easydel.ops.stacked import Stacked

# B batch, T tokens of this call, S slots of the sequence, P places of the cache, K kv heads, C head channels
KVCache = dict[str, Cached]
# Number of tokens that a conversation can go back (`PromptCache`) without losing keys of the window there.
REWIND = 64


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Seen:
    """The keys and values that queries attend to, with their masks and the queries' place among them.

    The first query is in slot `slot` of the keys, or in `known_slot` where that is known at trace time. `stacks` are
    the keys and values among those of other layers, if they lie there.
    """

    k_BKSC: jax.Array
    v_BKSC: jax.Array
    valid_BS: jax.Array | None
    starts_BT: jax.Array | None
    slot: jax.Array | None
    known_slot: int = field(metadata={"static": True})
    scores: Scores = field(metadata={"static": True})
    stacks: tuple[Stacked, Stacked] | None = None

    def masks(self) -> dict[str, Any]:
        """Returns the arguments of `attend` that say which keys are seen, and where they lie."""
        offset = self.known_slot if self.slot is None else self.slot
        return {"offset": offset, "valid_BS": self.valid_BS, "starts_BT": self.starts_BT, "stacks": self.stacks}


def empty_keys(
    batch: int, length: int, kv_heads: int, channels: tuple[int, int], window: int | None, dtype: Any
) -> Any:
    """Returns places for keys and values, [batch, kv_heads, places, channels] each.

    The slots of a whole sequence are split as sequences are. A window is short, and its places are out of order.
    """
    axes = ("batch", "kv_head", None if window else "sequence", "head_dim")
    sizes = zip("kv", channels, strict=True)
    return {name: empty((batch, kv_heads, places(length, window), size), dtype, *axes) for name, size in sizes}


def places(length: int, window: int | None) -> int:
    """Number of places in a cache for sequences of `length`."""
    return length if window is None else min(length, window + REWIND)


def reachable(length: int, window: int | None, end: int) -> int | None:
    """Number of slots one can go back so that the cache still holds everything the token there may attend to.

    `end` counts all slots ever written, including those of a turn that was abandoned. None: all slots.
    """
    kept = places(length, window)
    return None if window is None or end <= kept else kept - window + 1


def update(
    cache: KVCache | None,
    k_BKTC: jax.Array,
    v_BKTC: jax.Array,
    context: Context,
    scores: Scores,
    starts_BT: jax.Array | None = None,
) -> tuple[KVCache | None, Seen]:
    """Returns the cache with this call's keys and values, and the keys and values that its queries attend to.

    `starts_BT` is the first slot of the sequence that each query sees, if not the first of all.
    """
    valid_BS = context.valid_BS

    def seen(k: jax.Array, v: jax.Array, valid: Any, starts: Any, slot: jax.Array | int, scores: Scores) -> Seen:
        known = not isinstance(slot, jax.Array)
        return Seen(k, v, valid, starts, None if known else slot, int(slot) if known else 0, scores)

    offset = context.offset
    if cache is None:
        return None, seen(k_BKTC, v_BKTC, valid_BS, starts_BT, offset, scores)
    assert valid_BS is not None
    new = {name: part.astype(cache[name].array.dtype) for name, part in (("k", k_BKTC), ("v", v_BKTC))}
    P, T = cache["k"].array.shape[2], k_BKTC.shape[2]
    if valid_BS.shape[1] == P:  # the cache holds the whole sequence
        cache = _written(cache, new, offset)
        found = seen(cache["k"].array, cache["v"].array, valid_BS, starts_BT, offset, scores)
        k, v = (cache[name].stack for name in "kv")
        return cache, found if k is None or v is None else replace(found, stacks=(k, v))
    window = reach(scores.sight)
    assert window is not None
    assert is_causal(scores.sight)
    if T == 1:  # written in place: the ring is out of order, but attention needs only the mask of valid places
        cache = _written(cache, new, offset % P)
        first_B1 = offset - window + 1 if starts_BT is None else starts_BT
        valid_BP = _valid_in_window(valid_BS, P, first_B1, offset)
        everything = replace(scores, sight=Around())
        return cache, seen(cache["k"].array, cache["v"].array, valid_BP, None, 0, everything)
    cache, with_last, valid_BS, before = with_earlier(cache, new, context, window - 1)
    starts_BT = None if starts_BT is None else starts_BT - offset + before
    return cache, seen(with_last["k"], with_last["v"], valid_BS, starts_BT, before, scores)


def with_earlier(
    cache: KVCache, new: dict[str, jax.Array], context: Context, count: int
) -> tuple[KVCache, dict[str, jax.Array], jax.Array, int]:
    """Returns the cache with this call's arrays [B, K, T, C] in it, and these arrays behind those of earlier slots.

    Also returns which of those slots are valid, and how many are earlier: `count`, or none if nothing is before this
    call.
    """
    assert context.valid_BS is not None
    offset = context.offset
    before = 0 if not isinstance(offset, jax.Array) and offset == 0 else count
    P, T = next(iter(cache.values())).array.shape[2], next(iter(new.values())).shape[2]
    earlier = (offset - before + jnp.arange(before)) % P
    joined = {name: jnp.concatenate([jnp.take(cache[name].array, earlier, 2), new[name]], 2) for name in new}
    padded_BS = jnp.pad(context.valid_BS, ((0, 0), (before, 0)))  # slots below zero are not valid
    valid_BS = jax.lax.dynamic_slice_in_dim(padded_BS, offset, before + T, axis=1)
    cache = _written(cache, new, offset % P) if T == 1 else _rolled(cache, new, offset, context.valid_BT)
    return cache, joined, valid_BS, before


def _written(cache: KVCache, new: dict[str, jax.Array], place: jax.Array | int) -> KVCache:
    return {name: cache[name].written(part, place, 2) for name, part in new.items()}


def _rolled(cache: KVCache, new: dict[str, jax.Array], offset: jax.Array | int, valid_BT: jax.Array | None) -> KVCache:
    """Writes the last of several tokens that go to each place. Returns the new cache.

    Padding at the end is left out: real tokens may be written to its slots later, and must still see the tokens that
    the padding would have overwritten.
    """
    P, T = next(iter(cache.values())).array.shape[2], next(iter(new.values())).shape[2]
    count = T if valid_BT is None else jnp.max(jnp.where(valid_BT, jnp.arange(1, T + 1), 0))
    first_P = (jnp.arange(P) - offset) % P  # a place gets this token, and those P, 2 P, ... later
    last_P = first_P + jnp.maximum(count - 1 - first_P, 0) // P * P
    stays_P1 = (first_P >= count)[:, None]

    def rolled(old: Cached, part: jax.Array) -> Cached:
        return replace(old, array=jnp.where(stays_P1, old.array, jnp.take(part, last_P, 2, mode="clip")))

    return {name: rolled(cache[name], part) for name, part in new.items()}


def _valid_in_window(valid_BS: jax.Array, kept: int, first_B1: jax.Array | int, slot: jax.Array | int) -> jax.Array:
    """Returns the mask [B, P] of places that the token in `slot`, the last one written, may attend to."""
    slots_P = slot - (slot - jnp.arange(kept)) % kept
    seen_BP = (slots_P >= 0) & (slots_P >= first_B1)
    return jnp.take(valid_BS, jnp.maximum(slots_P, 0), axis=1) & seen_BP
