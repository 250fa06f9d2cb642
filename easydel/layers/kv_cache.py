"""Keys and values from call to call: all of a sequence's, or of its end, for layers that see a window of it.

Slot s of the sequence lies at place s of the cache, or, if that has fewer, at s modulo their number: what a token
overwrites there has left the window of all that follow. Who goes back to an earlier slot asks `within_reach`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from easydel.layers.context import Context
from easydel.ops.scores import Scores

# B batch, T tokens of this call, S slots of the sequence, P places of the cache, K kv heads, C head channels
KVCache = dict[str, jax.Array]
# By how many tokens a conversation can go back (`PromptCache`) without losing what is in the window there.
REWIND = 64


@dataclass(frozen=True)
class Seen:
    """What queries see, as `attend` takes it: keys and values, which may be attended to, and the queries' place."""

    k_BKSC: jax.Array
    v_BKSC: jax.Array
    scores: Scores
    offset: jax.Array | int
    valid_BS: jax.Array | None


def places(length: int, window: int | None) -> int:
    """How many a cache has, for sequences of `length`."""
    return length if window is None else min(length, window + REWIND)


def within_reach(kept: int, window: int, end: int, slot: int) -> bool:
    """Whether a cache of `kept` places still has what the token in `slot` sees.

    `end` is that of all slots ever written, whatever was gone back from.
    """
    return end <= kept or end - slot <= kept - window + 1


def update(
    cache: KVCache | None, k_BKTC: jax.Array, v_BKTC: jax.Array, context: Context, scores: Scores
) -> tuple[KVCache | None, Seen]:
    """The cache with this call's keys and values, and what its queries see."""
    offset, valid_BS = context.offset, context.valid_BS
    if cache is None:
        return None, Seen(k_BKTC, v_BKTC, scores, offset, valid_BS)
    assert valid_BS is not None
    new = {"k": k_BKTC.astype(cache["k"].dtype), "v": v_BKTC.astype(cache["v"].dtype)}
    P, T = cache["k"].shape[2], k_BKTC.shape[2]
    if valid_BS.shape[1] == P:  # of the whole sequence
        cache = _written(cache, new, offset)
        return cache, Seen(cache["k"], cache["v"], scores, offset, valid_BS)
    window = scores.window
    assert window is not None
    assert scores.causal
    assert context.bias is None, "it would be for all slots"
    if T == 1:  # nothing is copied: places are not in the order of slots, and which of them are seen says it all
        cache = _written(cache, new, offset % P)
        valid_BP = _valid_in_window(valid_BS, P, window, offset)
        return cache, Seen(cache["k"], cache["v"], replace(scores, causal=False, window=None), 0, valid_BP)
    before = 0 if not isinstance(offset, jax.Array) and offset == 0 else window - 1
    earlier = (offset - before + jnp.arange(before)) % P
    k_BKSC, v_BKSC = (jnp.concatenate([jnp.take(cache[name], earlier, 2), new[name]], 2) for name in ("k", "v"))
    padded_BS = jnp.pad(valid_BS, ((0, 0), (before, 0)))  # slots below zero are not valid
    valid_BS = jax.lax.dynamic_slice_in_dim(padded_BS, offset, before + T, axis=1)
    return _rolled(cache, new, offset, context.valid_BT), Seen(k_BKSC, v_BKSC, scores, before, valid_BS)


def _written(cache: KVCache, new: KVCache, place: jax.Array | int) -> KVCache:
    return {name: jax.lax.dynamic_update_slice_in_dim(cache[name], new[name], place, axis=2) for name in new}


def _rolled(cache: KVCache, new: KVCache, offset: jax.Array | int, valid_BT: jax.Array | None) -> KVCache:
    """The cache with the last of several tokens that goes to each place.

    Padding at the end is left out: real tokens may come to its slots, and see what it would have overwritten.
    """
    P, T = cache["k"].shape[2], new["k"].shape[2]
    count = T if valid_BT is None else jnp.max(jnp.where(valid_BT, jnp.arange(1, T + 1), 0))
    first_P = (jnp.arange(P) - offset) % P  # the tokens that go to a place are this one, and those P, 2 P, ... later
    last_P = first_P + jnp.maximum(count - 1 - first_P, 0) // P * P
    stays_P1 = (first_P >= count)[:, None]
    return {name: jnp.where(stays_P1, cache[name], jnp.take(new[name], last_P, 2, mode="clip")) for name in new}


def _valid_in_window(valid_BS: jax.Array, kept: int, window: int, slot: jax.Array | int) -> jax.Array:
    """[B, P]: which of the cache's `kept` places the token in `slot`, the last one written, may attend to."""
    slots_P = slot - (slot - jnp.arange(kept)) % kept
    seen_P = (slots_P >= 0) & (slots_P > slot - window)
    return jnp.take(valid_BS, jnp.maximum(slots_P, 0), axis=1) & seen_P
