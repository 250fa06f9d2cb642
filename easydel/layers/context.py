"""What all layers of one forward pass share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import jax
import jax.numpy as jnp

from easydel.layers.rope import Rope
from easydel.ops.attend import Bias

# B batch, T length of this call, S length of the cache (or T where there is none)


class LayerCache(Protocol):
    """A pytree that a mixer carries from call to call: keys and values, or a recurrent state."""


@dataclass
class Context:
    """Positions, masks and cached angles of one forward pass.

    `positions_BT` are the tokens' positions (they count attended tokens); slots are where keys lie in the cache:
    the token t of this call is in slot `offset` + t. `valid_BS` marks slots that may be attended to (None: all of
    them). `valid_BT` is its part for this call's tokens. `starts_BT` is where each token's segment begins, if several
    are packed into one row: what mixes tokens must not mix those of two. In an encoder `causal` is False; `cross` is
    what a decoder's cross-attention sees. `bias` is added to self-attention's scores, as `attend` takes it.
    """

    positions_BT: jax.Array
    valid_BS: jax.Array | None = None
    valid_BT: jax.Array | None = None
    starts_BT: jax.Array | None = None
    offset: jax.Array | int = 0
    causal: bool = True
    cross: Cross | None = None
    bias: Bias | None = None
    frozen: bool = False
    _angles: dict[Rope, tuple[jax.Array, jax.Array]] = field(default_factory=dict)

    def angles(self, rope: Rope) -> tuple[jax.Array, jax.Array]:
        """cos and sin for this call's tokens, computed once for all layers with the same rope."""
        if rope in self._angles:
            return self._angles[rope]
        angles = rope.angles(self.positions_BT)
        if not self.frozen:  # inside a scan body they must not leak out of its trace
            self._angles[rope] = angles
        return angles


@dataclass
class Cross:
    """An encoder's output [B, S, D] and which of its tokens are real."""

    states_BSD: jax.Array | None
    valid_BS: jax.Array | None


def segment_starts(ids_BT: jax.Array) -> jax.Array:
    """The first slot of each token's segment; one begins wherever the id is not that of the token before."""
    begins_BT = jnp.pad(ids_BT[:, 1:] != ids_BT[:, :-1], ((0, 0), (1, 0)))
    return jax.lax.cummax(jnp.where(begins_BT, jnp.arange(ids_BT.shape[1]), 0), axis=1)


def counted(valid_BS: jax.Array, starts_BS: jax.Array | None) -> jax.Array:
    """How many attended tokens of its segment are before each one; on padding it may be -1."""
    count_BS = jnp.cumsum(valid_BS, axis=-1)
    if starts_BS is not None:
        count_BS -= jnp.take_along_axis(count_BS - valid_BS, starts_BS, axis=-1)
    return count_BS - 1
