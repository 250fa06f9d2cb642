"""Short causal convolutions, one for each channel or for groups of channels."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.layers.linear import parameter
from easydel.policy import Policy

# B batch, T length, I channels, W width less one, G groups, C channels of a group, O those of its output


class CausalConv(nnx.Module):
    """A weighted sum of each channel's last `width` inputs. `kernel` [channels, 1, width] is never quantized.

    With a `step`, the inputs are that many tokens from each other.
    """

    def __init__(self, channels: int, width: int, policy: Policy, *, bias: bool, step: int = 1):
        self.kernel = parameter((channels, 1, width), policy)
        self.bias = parameter((channels,), policy) if bias else None
        self.step = step

    def __call__(
        self, x_BTI: jax.Array, past_BWI: jax.Array | None = None, channels: slice = slice(None)
    ) -> tuple[jax.Array, jax.Array]:
        """Returns outputs [B, T, I] and the inputs that the next call needs as `past_BWI` (None: zeros).

        `channels` says which of them `x_BTI` has.
        """
        (batch, length, count), width, step = x_BTI.shape, self.kernel.shape[-1], self.step
        if past_BWI is None:
            past_BWI = jnp.zeros((batch, (width - 1) * step, count), x_BTI.dtype)
        inputs = jnp.concatenate([past_BWI.astype(x_BTI.dtype), x_BTI], axis=1)
        # float32: 16 bits would round after each of the few products
        kernel, wide = self.kernel[...][channels].astype(jnp.float32), inputs.astype(jnp.float32)
        taps = (wide[:, i * step : i * step + length] * kernel[:, 0, i] for i in range(width))
        y_BTI = sum(taps, jnp.zeros_like(wide[:, :length]))
        if self.bias is not None:
            y_BTI = y_BTI + self.bias[...][channels].astype(jnp.float32)
        return y_BTI.astype(x_BTI.dtype), inputs[:, length:]


class GroupedConv(nnx.Module):
    """Sums over the last `width` inputs of all channels of a group. `kernel` [channels, channels / groups, width]."""

    def __init__(self, channels: int, groups: int, width: int, policy: Policy):
        self.kernel = parameter((channels, channels // groups, width), policy)
        self.bias = parameter((channels,), policy)
        self.groups, self.policy = groups, policy

    def __call__(self, x_BTI: jax.Array) -> jax.Array:
        """Returns outputs [B, T - width + 1, I]: those of the first tokens are left out, which lack earlier ones."""
        width = self.kernel.shape[-1]
        kernel_GOCW = self.kernel[...].reshape(self.groups, -1, *self.kernel.shape[1:]).astype(x_BTI.dtype)
        x_BTGC, length = x_BTI.reshape(*x_BTI.shape[:2], self.groups, -1), x_BTI.shape[1] - width + 1
        # float32: 16 bits would round each of the few sums
        wide: Any = {"precision": self.policy.precision, "preferred_element_type": jnp.float32}
        sums = (
            jnp.einsum("BTGC,GOC->BTGO", x_BTGC[:, i : i + length], kernel_GOCW[..., i], **wide) for i in range(width)
        )
        y_BTI = sum(sums, jnp.zeros((), jnp.float32)).reshape(x_BTI.shape[0], length, -1)
        return (y_BTI + self.bias[...].astype(jnp.float32)).astype(x_BTI.dtype)
