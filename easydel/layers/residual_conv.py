"""Short convolutions that are added to their inputs (Thinking Machines Lab 2026, Inkling)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.layers.context import Context
from easydel.layers.conv import CausalConv
from easydel.layers.linear import Linear, parameter
from easydel.layers.part import Cached, empty
from easydel.layers.recurrent import attended, kept, past
from easydel.policy import Policy

# B batch, T length, W taps, I channels, D features, K heads, C channels of a head
State = dict[str, Cached]


@dataclass(frozen=True)
class ResidualConv:
    """x + conv(x) over `width` tokens; if `averaged`, over sqrt(width + 1)."""

    width: int
    averaged: bool = False

    def build(self, channels: int, features: int, policy: Policy) -> ResidualConvModule:
        return ResidualConvModule(self, channels, policy)

    def cache(self, batch: int, channels: int, dtype: Any) -> State:
        """Returns the last inputs."""
        return {"conv": empty((batch, self.width - 1, channels), dtype, "batch", None, None)}


class ResidualConvModule(nnx.Module):
    def __init__(self, record: ResidualConv, channels: int, policy: Policy):
        self.conv1d = CausalConv(channels, record.width, policy, bias=False)
        self.scale = (record.width + 1) ** -0.5 if record.averaged else 1.0

    def __call__(
        self, x_BTI: jax.Array, read_BTD: jax.Array, context: Context, cache: State | None
    ) -> tuple[jax.Array, State | None]:
        """Returns the result and the new state; `read_BTD` is what `x_BTI` was made of."""
        wide_BTI = x_BTI.astype(jnp.float32)  # one rounding, after the sum
        y_BTI, last_BWI = self.conv1d(attended(wide_BTI, context), past(cache, "conv"))
        return ((y_BTI + wide_BTI) * self.scale).astype(x_BTI.dtype), kept(cache, conv=last_BWI)


@dataclass(frozen=True)
class TokenConv:
    """(x + conv(x)) / sqrt(2 * width + 1), whose taps are learned numbers and, for each of `heads`, a projection."""

    width: int
    heads: int

    def build(self, channels: int, features: int, policy: Policy) -> TokenConvModule:
        return TokenConvModule(self, channels, features, policy)

    def cache(self, batch: int, channels: int, dtype: Any) -> State:
        """Returns the last inputs."""
        return {"conv": empty((batch, self.width - 1, channels), dtype, "batch", None, None)}


class TokenConvModule(nnx.Module):
    """`taps` [width, channels] begin with the token's own; `weight_proj` makes what is added to them."""

    def __init__(self, record: TokenConv, channels: int, features: int, policy: Policy):
        self.taps = parameter((record.width, channels), policy)
        self.weight_proj = Linear(features, record.heads * record.width, policy)
        self.record = record

    def __call__(
        self, x_BTI: jax.Array, read_BTD: jax.Array, context: Context, cache: State | None
    ) -> tuple[jax.Array, State | None]:
        """Returns the result and the new state, as `ResidualConvModule` does."""
        (batch, length, _), width, heads = x_BTI.shape, self.record.width, self.record.heads
        wide_BTI = x_BTI.astype(jnp.float32)  # one rounding, after the sum
        past_BWI = past(cache, "conv")
        past_BWI = jnp.zeros((batch, width - 1, x_BTI.shape[-1])) if past_BWI is None else past_BWI
        given = jnp.concatenate([past_BWI.astype(jnp.float32), attended(wide_BTI, context)], axis=1)
        own_BTKW = self.weight_proj(read_BTD).astype(jnp.float32).reshape(batch, length, heads, width)
        taps_WKC = self.taps[...].astype(jnp.float32).reshape(width, heads, -1)
        y_BTKC = wide_BTI.reshape(batch, length, heads, -1)
        for back in range(width):
            seen_BTI = given[:, width - 1 - back : width - 1 - back + length]
            y_BTKC = y_BTKC + seen_BTI.reshape(y_BTKC.shape) * (taps_WKC[back] + own_BTKW[..., back, None])
        y_BTI = y_BTKC.reshape(x_BTI.shape) * (2 * width + 1) ** -0.5
        return y_BTI.astype(x_BTI.dtype), kept(cache, conv=given[:, length:])
