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


@dataclass(frozen=True)
class Affine:
    """(x + bias) * scale, with learned numbers for each channel; x * scale, if it is not `shifted`."""

    shifted: bool = True

    def build(self, features: int, policy: Policy) -> AffineModule:
        return AffineModule(self, features, policy)


class AffineModule(nnx.Module):
    def __init__(self, record: Affine, features: int, policy: Policy):
        self.scale = parameter((features,), policy)
        self.bias = parameter((features,), policy) if record.shifted else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the result in the dtype of `x`."""
        x = x if self.bias is None else x + self.bias[...].astype(x.dtype)
        return x * self.scale[...].astype(x.dtype)


@dataclass(frozen=True)
class L2Clip:
    """x, or x * `scale` if `scaled`, shortened to the length `limit` where it is longer."""

    limit: float
    scaled: bool = False

    def build(self, features: int | tuple[int, ...], policy: Policy) -> L2ClipModule:
        return L2ClipModule(self, features, policy)


class L2ClipModule(nnx.Module):
    def __init__(self, record: L2Clip, features: int | tuple[int, ...], policy: Policy):
        shape = (features,) if isinstance(features, int) else features
        self.scale = parameter(shape, policy) if record.scaled else None
        self.limit = record.limit

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)  # squares overflow or vanish in 16 bits
        wide = wide if self.scale is None else wide * self.scale[...].astype(jnp.float32)
        squares = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
        length = jnp.sqrt(jnp.maximum(squares, jnp.finfo(jnp.float32).tiny))  # a root has no gradient at zero
        return (wide * jnp.minimum(self.limit / (length + 1e-6), 1.0)).astype(x.dtype)


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
