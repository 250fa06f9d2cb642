"""Kinds of position besides rotation: biases on the scores, and scales that depend on the position."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from easydel.layers.context import Context, counted

# B batch, T tokens of this call, S key slots, N heads


@dataclass(frozen=True)
class ALiBi:
    """Scores that fall linearly with distance, steeper for some heads (Press et al. 2021, arXiv:2108.12409).

    `max_bias` is 8 in the paper and sets the steepest slope of a power-of-two head count, 2 ** (-max_bias / heads).
    """

    heads: int
    max_bias: float = 8.0

    def slopes(self) -> np.ndarray:
        """Returns one slope per head. A head count that is no power of two uses every other slope of the next power."""
        power = 1 << (self.heads - 1).bit_length()
        steps = 2.0 ** (-self.max_bias / power * np.arange(1, power + 1))
        if power == self.heads:
            return steps.astype(np.float32)
        return np.concatenate([steps[1::2], steps[::2]])[: self.heads].astype(np.float32)

    def bias(self, context: Context, length: int) -> jax.Array:
        """Returns slope times key position [B, N, 1, S]; the query's part would cancel in the softmax."""
        return jnp.asarray(self.slopes())[None, :, None, None] * self.positions(context, length)[:, None, None, :]

    def positions(self, context: Context, length: int) -> jax.Array:
        """Returns the keys' positions, [B or 1, S] in float32. They count attended tokens, from 0 in each segment."""
        valid_BS, starts_BS = context.valid_BS, context.starts_BT
        if valid_BS is None:
            positions = jnp.arange(length)[None]
            return (positions if starts_BS is None else positions - starts_BS).astype(jnp.float32)
        return (counted(valid_BS, starts_BS) * valid_BS).astype(jnp.float32)


@dataclass(frozen=True)
class GrowingScale:
    """A scale that grows with the query's position, so that many keys do not flatten the weights (Llama 4, Meta 2025).

    It is `start` * (1 + `growth` * ln(1 + floor(position / `length`))); `start` defaults to head_dim ** -0.5.
    `shift` is added to the position first.
    """

    growth: float
    length: float
    start: float | None = None
    shift: int = 0

    def factors(self, positions_BT: jax.Array) -> jax.Array:
        """Returns the factors of `start` for queries at these positions, [B, T] in float32."""
        counted = positions_BT.astype(jnp.float32) + self.shift
        return 1 + self.growth * jnp.log1p(jnp.floor(counted / self.length))
