"""What a query may see of a sequence: records that masks, kernels and caches are asked for.

Every sight limits how far a query sees: `before` slots back and `after` slots ahead of its own, None for no limit. It
may also depend on the row: `starts` then gives the first slot that each query sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Causal:
    """A query sees itself and what is before it; with a `window`, only that many slots, its own included."""

    after: ClassVar[int] = 0
    window: int | None = None

    @property
    def before(self) -> int | None:
        return None if self.window is None else self.window - 1

    def starts(self, slots_T: jax.Array, positions_BT: jax.Array) -> None:
        return None


@dataclass(frozen=True)
class Chunks:
    """Causal within chunks of `size` tokens, counted by position (Llama 4, Meta 2025)."""

    after: ClassVar[int] = 0
    size: int

    @property
    def before(self) -> int:
        return self.size - 1

    def starts(self, slots_T: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """The slot where each token's chunk begins, [B, T]; attended tokens of a row stand in neighbouring slots."""
        return slots_T - positions_BT % self.size


@dataclass(frozen=True)
class Around:
    """A query sees both ways: as far as there are tokens, or `before` slots back and `after` slots ahead."""

    before: int | None = None
    after: int | None = None

    def starts(self, slots_T: jax.Array, positions_BT: jax.Array) -> None:
        return None


@dataclass(frozen=True)
class Prefix:
    """Causal, but the tokens of a row's prefix see each other (prefix language models, PaliGemma).

    Which tokens are of the prefix is an input, `prefix_mask`; a call without it is causal.
    """

    before: ClassVar[None] = None
    after: ClassVar[None] = None

    def starts(self, slots_T: jax.Array, positions_BT: jax.Array) -> None:
        return None


Sight = Causal | Chunks | Around | Prefix


def is_causal(sight: Sight) -> bool:
    """True if no query sees what is behind it."""
    return sight.after == 0


def reach(sight: Sight) -> int | None:
    """How many of the last slots a query can see, its own included; None for no limit, and if it sees ahead."""
    return None if sight.before is None or not is_causal(sight) else sight.before + 1


def order_seen(queries: int, keys: int, distance: jax.Array | int, sight: Sight) -> jax.Array | None:
    """Which keys the limits of `sight` leave to each query, [T, S]; None if they leave all.

    `distance` is the slot of the first query minus that of the first key.
    """
    if sight.before is None and sight.after is None:
        return None
    away_TS = jnp.arange(queries)[:, None] - jnp.arange(keys) + distance
    seen_TS = jnp.ones((queries, keys), bool) if sight.after is None else away_TS >= -sight.after
    return seen_TS if sight.before is None else seen_TS & (away_TS <= sight.before)
