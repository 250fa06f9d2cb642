"""Records of the slots that a query may see. Masks, kernels and caches ask them.

Every sight limits how far a query sees: `before` slots back and `after` slots ahead of its own, None for no limit. A
sight may also depend on the row: `starts` then gives the first slot that each query sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Causal:
    """Sight of the query itself and all before it; with a `window`, of that many slots, its own included."""

    after: ClassVar[int] = 0
    window: int | None = None

    @property
    def before(self) -> int | None:
        return None if self.window is None else self.window - 1

    def starts(self, slots_T: jax.Array, positions_BT: jax.Array) -> None:
        return None


@dataclass(frozen=True)
class Chunks:
    """Causal sight within chunks of `size` tokens, counted by position (Llama 4, Meta 2025)."""

    after: ClassVar[int] = 0
    size: int

    @property
    def before(self) -> int:
        return self.size - 1

    def starts(self, slots_T: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Returns the slot where each token's chunk begins, [B, T]; a row's attended tokens are in adjacent slots."""
        return slots_T - positions_BT % self.size


@dataclass(frozen=True)
class Around:
    """Sight in both directions: of all tokens, or of `before` slots back and `after` slots ahead."""

    before: int | None = None
    after: int | None = None

    def starts(self, slots_T: jax.Array, positions_BT: jax.Array) -> None:
        return None


@dataclass(frozen=True)
class Prefix:
    """Causal sight, except that the tokens of a row's prefix see each other (prefix language models, PaliGemma).

    The input `prefix_mask` marks the prefix; a call without it is causal.
    """

    before: ClassVar[None] = None
    after: ClassVar[None] = None

    def starts(self, slots_T: jax.Array, positions_BT: jax.Array) -> None:
        return None


Sight = Causal | Chunks | Around | Prefix


def is_causal(sight: Sight) -> bool:
    """True if no query sees later tokens."""
    return sight.after == 0


def reach(sight: Sight) -> int | None:
    """Number of slots up to its own that a query can see; None for no limit, and for sights that see ahead."""
    return None if sight.before is None or not is_causal(sight) else sight.before + 1


def order_seen(queries: int, keys: int, distance: jax.Array | int, sight: Sight) -> jax.Array | None:
    """Returns the mask [T, S] of keys that the limits of `sight` leave to each query; None if they leave all.

    `distance` is the slot of the first query minus that of the first key.
    """
    if sight.before is None and sight.after is None:
        return None
    away_TS = jnp.arange(queries)[:, None] - jnp.arange(keys) + distance
    seen_TS = jnp.ones((queries, keys), bool) if sight.after is None else away_TS >= -sight.after
    return seen_TS if sight.before is None else seen_TS & (away_TS <= sight.before)
