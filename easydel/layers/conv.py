"""Short causal convolutions, one for each channel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.layers.linear import parameter
from easydel.policy import Policy

# B batch, T length, I channels, W width less one


class CausalConv(nnx.Module):
    """A weighted sum of each channel's last `width` inputs. `kernel` [channels, 1, width] is never quantized."""

    def __init__(self, channels: int, width: int, policy: Policy, *, bias: bool):
        self.kernel = parameter((channels, 1, width), policy)
        self.bias = parameter((channels,), policy) if bias else None

    def __call__(
        self, x_BTI: jax.Array, past_BWI: jax.Array | None = None, channels: slice = slice(None)
    ) -> tuple[jax.Array, jax.Array]:
        """Returns outputs [B, T, I] and the inputs that the next call needs as `past_BWI` (None: zeros).

        `channels` says which of them `x_BTI` has.
        """
        (batch, length, count), width = x_BTI.shape, self.kernel.shape[-1]
        if past_BWI is None:
            past_BWI = jnp.zeros((batch, width - 1, count), x_BTI.dtype)
        inputs = jnp.concatenate([past_BWI.astype(x_BTI.dtype), x_BTI], axis=1)
        # float32: 16 bits would round after each of the few products
        kernel, wide = self.kernel[...][channels].astype(jnp.float32), inputs.astype(jnp.float32)
        y_BTI = sum((wide[:, i : i + length] * kernel[:, 0, i] for i in range(width)), jnp.zeros_like(wide[:, :length]))
        if self.bias is not None:
            y_BTI = y_BTI + self.bias[...][channels].astype(jnp.float32)
        return y_BTI.astype(x_BTI.dtype), inputs[:, length:]
