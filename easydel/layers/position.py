"""Kinds of position besides rotation: biases on the scores, and scales that depend on the position."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from easydel.layers.context import Context, counted
from easydel.ops.attend import Bias
from easydel.ops.scores import MASKED

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
class Blocks:
    """Sight of neighbouring blocks of `size` tokens, and of the first and the last block (Zaheer et al. 2020).

    These two see everything. Where the paper has blocks chosen at random (arXiv:2007.14062), transformers at inference
    has `again` more copies of the first block: its keys count that many times more. Rows of at most
    (5 + 2 * `again`) * `size` tokens see everything. Padding in front does not count, padding behind does.
    """

    size: int
    again: int

    def bias(self, context: Context, length: int) -> Bias:
        """Returns a bias, (first query, queries) -> [B or 1, 1, queries, S]: of whole sequences alone."""
        first_B1 = (
            jnp.zeros((1, 1), int) if context.valid_BS is None else jnp.argmax(context.valid_BS, 1, keepdims=True)
        )
        blocks_BS = jnp.maximum(jnp.arange(length) - first_B1, 0) // self.size
        count_B11 = length - first_B1[:, None]
        last_B11 = (count_B11 - 1) // self.size

        def bias(start: jax.Array | int, queries: int) -> jax.Array:
            q_BT1 = jax.lax.dynamic_slice_in_dim(blocks_BS, start, queries, axis=1)[..., None]
            k_B1S = blocks_BS[:, None]
            everywhere_BT1 = (q_BT1 == 0) | (q_BT1 == last_B11)
            seen_BTS = everywhere_BT1 | (k_B1S == 0) | (k_B1S == last_B11) | (abs(q_BT1 - k_B1S) <= 1)
            again_BTS = jnp.where(~everywhere_BT1 & (k_B1S == 0), math.log1p(self.again), 0.0)
            sparse_B11 = count_B11 > (5 + 2 * self.again) * self.size
            return jnp.where(sparse_B11, jnp.where(seen_BTS, again_BTS, MASKED), 0.0)[:, None]

        return bias


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


@dataclass(frozen=True)
class LogGrowth:
    """A factor that grows with the query's position from `length` on: 1 + `growth` * ln((position + 1) / `length`)."""

    growth: float
    length: float

    def factors(self, positions_BT: jax.Array) -> jax.Array:
        """Returns the factors for queries at these positions, [B, T] in float32."""
        return 1 + self.growth * jnp.log(jnp.maximum((positions_BT.astype(jnp.float32) + 1) / self.length, 1.0))
