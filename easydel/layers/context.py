"""The inputs that all layers of one forward pass share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from easydel.layers.rope import Rope

# B batch, T length of this call, S length of the cache (or T where there is none), D model
Angles = tuple[jax.Array, jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cross:
    """An encoder's output [B, S, D] (None once caches hold its keys and values), and the mask of its real tokens."""

    states_BSD: jax.Array | None
    valid_BS: jax.Array | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Context:
    """Token ids, positions, masks and angles of one forward pass, made once and passed to every layer.

    `positions_BT` are the tokens' positions, which count attended tokens. Slots are the places of keys in the cache:
    token t of this call is in slot `offset` + t. `valid_BS` marks slots that may be attended to (None: all of them);
    `valid_BT` is the same for this call's tokens. `starts_BT` is the slot where each token's segment begins, if several
    segments are packed into one row: tokens of different segments must not mix. `prefix_BS` marks slots that see each
    other, `marked_BT` tokens that see all others and are seen by all. `cross` is the input of a decoder's cross-
    attention. `entered_BTD` is the output of the embeddings. `each` has inputs for every layer, [layers, B, T, ...]
    here and [B, T, ...] in the context that a layer gets. `shared` has the modules of parts that several layers use.
    `handed` has values that earlier layers handed on.
    """

    positions_BT: jax.Array
    valid_BS: jax.Array | None = None
    valid_BT: jax.Array | None = None
    starts_BT: jax.Array | None = None
    slot: jax.Array | None = None
    cross: Cross | None = None
    ids_BT: jax.Array | None = None
    prefix_BS: jax.Array | None = None
    marked_BT: jax.Array | None = None
    entered_BTD: jax.Array | None = None
    each: Mapping[str, jax.Array] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)
    handed: Mapping[str, Any] = field(default_factory=dict)
    angles_of: tuple[Angles, ...] = ()
    ropes: tuple[Rope, ...] = field(default=(), metadata={"static": True})
    known_slot: int = field(default=0, metadata={"static": True})

    @property
    def offset(self) -> jax.Array | int:
        """The slot of this call's first token: an int where it is known at trace time, which saves computation."""
        return self.known_slot if self.slot is None else self.slot

    def angles(self, rope: Rope) -> Angles:
        """Returns cos and sin for this call's tokens, [B, T, pairs] each."""
        return self.angles_of[self.ropes.index(rope)] if rope in self.ropes else rope.angles(self.positions_BT)

    def with_angles(self, ropes: Iterable[Rope]) -> Context:
        """Returns the context with the angles of `ropes`, computed once for all layers."""
        distinct = tuple(dict.fromkeys(ropes))
        return replace(self, ropes=distinct, angles_of=tuple(rope.angles(self.positions_BT) for rope in distinct))

    def of_layer(self, number: jax.Array | int) -> Context:
        """Returns the context of one layer, with that layer's own entries of `each`."""
        if not self.each:
            return self
        own = {name: jax.lax.dynamic_index_in_dim(part, number, keepdims=False) for name, part in self.each.items()}
        return replace(self, each=own)


def segment_starts(ids_BT: jax.Array) -> jax.Array:
    """Returns the first slot of each token's segment. A segment begins wherever the id differs from the one before."""
    begins_BT = jnp.pad(ids_BT[:, 1:] != ids_BT[:, :-1], ((0, 0), (1, 0)))
    return jax.lax.cummax(jnp.where(begins_BT, jnp.arange(ids_BT.shape[1]), 0), axis=1)


def counted(valid_BS: jax.Array, starts_BS: jax.Array | None) -> jax.Array:
    """Returns the number of attended tokens of the same segment before each token; on padding it may be -1."""
    count_BS = jnp.cumsum(valid_BS, axis=-1)
    if starts_BS is not None:
        count_BS -= jnp.take_along_axis(count_BS - valid_BS, starts_BS, axis=-1)
    return count_BS - 1
