"""Normalisation over the last dimension, always computed in float32."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.layers.linear import parameter
from easydel.policy import Policy


@dataclass(frozen=True)
class RMSNorm:
    """x / rms(x) * (offset + scale) (Zhang & Sennrich 2019, arXiv:1910.07467). Gemma stores scale - 1: offset 1.

    With `biased` a bias is added (xLSTM).
    """

    eps: float
    offset: float = 0.0
    scaled: bool = True
    biased: bool = False

    def build(self, features: int | tuple[int, ...], policy: Policy) -> Norm:
        return Norm(self, features, policy, scaled=self.scaled, biased=self.biased)

    def normalise(self, x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)


@dataclass(frozen=True)
class LayerNorm:
    """(x - mean) / std * (offset + scale) + bias (Ba et al. 2016, arXiv:1607.06450)."""

    eps: float
    offset: float = 0.0
    scaled: bool = True
    biased: bool = True

    def build(self, features: int | tuple[int, ...], policy: Policy) -> Norm:
        return Norm(self, features, policy, scaled=self.scaled, biased=self.biased)

    def normalise(self, x: jax.Array) -> jax.Array:
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.eps)


AnyNorm = RMSNorm | LayerNorm


class Norm(nnx.Module):
    """The parameters of a norm record: `scale` and `bias`, each [features] or absent."""

    def __init__(self, record: AnyNorm, features: int | tuple[int, ...], policy: Policy, *, scaled: bool, biased: bool):
        shape = (features,) if isinstance(features, int) else features
        self.scale = parameter(shape, policy) if scaled else None
        self.bias = parameter(shape, policy) if biased else None
        self.record = record

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.record.normalise(x.astype(jnp.float32))  # squares overflow or vanish in 16 bits
        if self.scale is not None:
            y = y * (self.scale[...].astype(jnp.float32) + self.record.offset)
        if self.bias is not None:
            y = y + self.bias[...].astype(jnp.float32)
        return y.astype(x.dtype)
