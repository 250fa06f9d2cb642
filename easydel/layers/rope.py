"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864) and the ways to stretch them.

Frequencies are radians per token, float32, one per pair of channels. Two pairings exist: halves (channel i with
i + dim/2, as in GPT-NeoX and Llama) and interleaved (2i with 2i + 1, as in GPT-J and Cohere).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from easydel.errors import UnsupportedModelError

# Settings that some model code of transformers uses whatever the rope type: refused if the type here does not take
# them. Other settings that a type does not take have no effect in transformers either.
EFFECTIVE = {"alpha", "llama_4_scaling_beta", "long_mscale", "short_mscale"}
# B batch, T length, N heads, C head channels, H pairs of rotated channels


def frequencies(dim: int, theta: float) -> np.ndarray:
    """Returns theta ** (-2i / dim) for each of the dim/2 pairs."""
    return (1.0 / (theta ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)))).astype(np.float32)


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor`."""

    factor: float

    def frequencies(self, dim: int, theta: float) -> np.ndarray:
        return frequencies(dim, theta) / np.float32(self.factor)


@dataclass(frozen=True)
class DynamicNTK:
    """A base that grows with the sequence once it is longer than `length`, so that frequencies depend on the call."""

    factor: float
    length: int

    def frequencies_for(self, dim: int, theta: float, positions: jax.Array) -> jax.Array:
        length = jnp.maximum(jnp.max(positions) + 1, self.length).astype(jnp.float32)
        stretch = self.factor * length / self.length - (self.factor - 1)
        base = theta * stretch ** (dim / (dim - 2))
        return 1.0 / base ** (jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)


@dataclass(frozen=True)
class Yarn:
    """Fast channels kept, slow ones divided by `factor`, and a blend between (Peng et al. 2023, arXiv:2309.00071)."""

    factor: float
    length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def frequencies(self, dim: int, theta: float) -> np.ndarray:
        low, high = (self._channel(turns, dim, theta) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        width = high - low if high != low else 0.001
        slow = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / width, 0, 1).astype(np.float32)
        kept = frequencies(dim, theta)
        return kept / np.float32(self.factor) * slow + kept * (1 - slow)

    def _channel(self, turns: float, dim: int, theta: float) -> float:
        """Returns the (fractional) index of the pair that turns `turns` times within the original length."""
        return dim * math.log(self.length / (turns * 2 * math.pi)) / (2 * math.log(theta))


@dataclass(frozen=True)
class LongRope:
    """One factor per pair, with a second set past the original length (Ding et al. 2024, arXiv:2402.13753)."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    length: int

    def frequencies_for(self, dim: int, theta: float, positions: jax.Array) -> jax.Array:
        short, long = (frequencies(dim, theta) / np.asarray(f, np.float32) for f in (self.short, self.long))
        return jnp.where(jnp.max(positions) + 1 > self.length, long, short)


@dataclass(frozen=True)
class Llama3:
    """Slow channels divided by `factor`, with a smooth transition between two wavelengths (Llama 3.1).

    Equal wavelengths are a step (Llama 4 Scout).
    """

    factor: float
    low: float
    high: float
    length: int

    def frequencies(self, dim: int, theta: float) -> np.ndarray:
        kept = frequencies(dim, theta)
        turns = self.length * kept / np.float32(2 * math.pi)  # within the original length
        ramp = (turns - self.low) / (self.high - self.low) if self.high > self.low else turns >= self.low
        smooth = np.clip(ramp, np.float32(0), np.float32(1))
        return ((1 - smooth) * kept / self.factor + smooth * kept).astype(np.float32)


@dataclass(frozen=True)
class Proportional:
    """Rotation of only the first `rotated` channels, with the frequencies of the whole head (Gemma 4)."""

    factor: float
    rotated: int

    def frequencies(self, dim: int, theta: float) -> np.ndarray:
        kept = frequencies(dim, theta) / np.float32(self.factor)
        return np.where(np.arange(dim // 2) < self.rotated // 2, kept, 0).astype(np.float32)


Scaling = LinearScaling | DynamicNTK | Yarn | LongRope | Llama3 | Proportional


@dataclass(frozen=True)
class Rope:
    """Rotation of the first `dim` channels of each head, or of the last ones if it is `trailing`.

    `gain` multiplies cos and sin (YaRN's attention factor).
    """

    dim: int
    theta: float = 10000.0
    scaling: Scaling | None = None
    gain: float = 1.0
    interleaved: bool = False
    trailing: bool = False

    def frequencies(self, positions_BT: jax.Array) -> jax.Array | np.ndarray:
        if self.scaling is None:
            return frequencies(self.dim, self.theta)
        if isinstance(self.scaling, DynamicNTK | LongRope):
            return self.scaling.frequencies_for(self.dim, self.theta, positions_BT)
        return self.scaling.frequencies(self.dim, self.theta)

    def angles(self, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns cos and sin of every position and pair, [B, T, H] in float32: angles need its whole mantissa."""
        angle_BTH = positions_BT[..., None].astype(jnp.float32) * self.frequencies(positions_BT)
        return jnp.cos(angle_BTH) * self.gain, jnp.sin(angle_BTH) * self.gain

    def rotate(self, x_BTNC: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Rotates queries or keys; the other channels pass unchanged."""
        cos, sin = (part[:, :, None, :].astype(x_BTNC.dtype) for part in angles)
        others = x_BTNC.shape[-1] - self.dim
        first, second = jnp.split(x_BTNC, [others if self.trailing else self.dim], axis=-1)
        rest, turned = (first, second) if self.trailing else (second, first)
        if self.interleaved:
            first, second = turned[..., 0::2], turned[..., 1::2]
        else:
            first, second = jnp.split(turned, 2, axis=-1)
        first, second = first * cos - second * sin, second * cos + first * sin
        if self.interleaved:
            turned = jnp.stack([first, second], axis=-1).reshape(turned.shape)
        else:
            turned = jnp.concatenate([first, second], axis=-1)
        if not others:
            return turned
        return jnp.concatenate([rest, turned] if self.trailing else [turned, rest], axis=-1)


def rope_from_settings(settings: Mapping[str, Any], head_dim: int, *, interleaved: bool = False) -> Rope:
    """Returns the Rope for `HFConfig.rope()`. Raises UnsupportedModelError for a type or key that is not honoured."""
    left = dict(settings)
    kind, theta = left.pop("rope_type"), float(left.pop("rope_theta"))
    length = left.pop("max_position_embeddings", None)
    partial = left.pop("partial_rotary_factor", None) or 1.0
    dim = head_dim if kind == "proportional" else int(head_dim * partial)
    left.pop("mrope_section", None)  # text tokens have equal positions in all sections
    scaling, gain = _scaling(kind, left, head_dim, partial, length)
    ignorable = {key for key, value in left.items() if value is None}
    if unknown := sorted(set(left) & EFFECTIVE - ignorable):
        raise UnsupportedModelError(f"rope type {kind!r} does not take {', '.join(unknown)}")
    if dim % 2:
        raise UnsupportedModelError(f"rope turns pairs of channels, not {dim} of a head's {head_dim}")
    if isinstance(scaling, LongRope) and {len(scaling.short), len(scaling.long)} != {dim // 2}:
        sizes = f"{len(scaling.short)} short and {len(scaling.long)} long"
        raise UnsupportedModelError(f"rope type {kind!r} needs {dim // 2} factors of each kind, has {sizes}")
    return Rope(dim, theta, scaling, gain, interleaved)


def _scaling(
    kind: str, left: dict[str, Any], head_dim: int, partial: float, length: int | None
) -> tuple[Scaling | None, float]:
    """Returns the scaling of that type and its gain, and removes the keys it honours from `left`."""
    if kind in ("default", "mrope"):
        return None, 1.0
    if kind == "linear":
        return LinearScaling(float(left.pop("factor"))), 1.0
    if kind == "dynamic":
        left.pop("original_max_position_embeddings", None)
        return DynamicNTK(float(left.pop("factor")), _length(length)), 1.0
    if kind == "yarn":
        return _yarn(left, length)
    if kind == "longrope":
        return _longrope(left, length)
    if kind == "llama3":
        keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        return Llama3(*(left.pop(key) for key in keys)), 1.0
    if kind == "proportional":
        return Proportional(float(left.pop("factor", None) or 1.0), 2 * int(partial * head_dim // 2)), 1.0
    raise UnsupportedModelError(
        f"rope type {kind!r} is not known", hint="known: default, linear, dynamic, yarn, longrope, llama3, proportional"
    )


def _length(length: int | None) -> int:
    if length is None:
        raise UnsupportedModelError("this rope type needs max_position_embeddings in the config")
    return length


def _yarn(left: dict[str, Any], length: int | None) -> tuple[Yarn, float]:
    original = left.pop("original_max_position_embeddings")
    factor = left.pop("factor", None) or _length(length) / original
    gain, mscale, mscale_all = (left.pop(key, None) for key in ("attention_factor", "mscale", "mscale_all_dim"))
    if gain is None:
        gain = yarn_gain(factor, mscale) / yarn_gain(factor, mscale_all) if mscale and mscale_all else yarn_gain(factor)
    fast, slow = left.pop("beta_fast", None) or 32, left.pop("beta_slow", None) or 1
    return Yarn(factor, original, fast, slow, left.pop("truncate", True)), float(gain)


def yarn_gain(factor: float, mscale: float = 1.0) -> float:
    """Returns YaRN's temperature, 0.1 * mscale * ln(factor) + 1."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(left: dict[str, Any], length: int | None) -> tuple[LongRope, float]:
    original = left.pop("original_max_position_embeddings")
    factor = left.pop("factor", None) or _length(length) / original
    gain = left.pop("attention_factor", None)
    if gain is None:
        gain = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    short, long = (tuple(map(float, left.pop(key))) for key in ("short_factor", "long_factor"))
    return LongRope(short, long, original), float(gain)
