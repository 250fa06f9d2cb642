"""Caches of a decode: their lengths, their growth, their place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from easydel.layers.part import Cached
from easydel.policy import Policy
from easydel.sharding.axes import AxisName

SHORTEST = 128
# How far a cache reaches beyond the prompt at first, and the factor it grows by: attention costs time for every slot,
# used or not, while each length compiles a program of its own.
AHEAD = 128
GROWTH = 4
SHORTEST_PROMPT = 16
HALF_STEPS_FROM = 256


def prompt_bucket(length: int) -> int:
    """Returns the padded length of a prompt: a power of two, or from 256 on also 1.5 times one."""
    bucket = _power(length, SHORTEST_PROMPT)
    between = bucket // 4 * 3
    return between if between >= max(length, HALF_STEPS_FROM) else bucket


def cache_lengths(prompt: int, new: int) -> list[int]:
    """Returns the lengths, powers of two, that a cache has while `new` tokens follow `prompt` slots."""
    last = _power(prompt + new, SHORTEST)
    lengths = [_power(prompt + min(new, AHEAD), SHORTEST)]
    while lengths[-1] < last:
        lengths.append(min(lengths[-1] * GROWTH, last))
    return lengths


def cache_stages(slots: int, new: int) -> list[tuple[int, int]]:
    """Returns the successive lengths of the cache, each with the number of new tokens that it has room for."""
    if new == 1:  # the only token was made with the prompt
        return []
    return [(length, min(new, length - slots)) for length in cache_lengths(slots, new)]


def _power(length: int, least: int) -> int:
    return max(least, 1 << (length - 1).bit_length())


def extended(tree: Any, shapes: Any) -> Any:
    """Returns `tree` with its arrays padded by zeros at the end, to `shapes`; arrays whose shape is None stay."""

    def extend(shape: jax.ShapeDtypeStruct | None, part: Any) -> Any:
        if shape is None or part.shape == shape.shape:
            return part
        return jnp.pad(part, [(0, wanted - size) for size, wanted in zip(part.shape, shape.shape, strict=True)])

    return jax.tree.map(extend, shapes, tree, is_leaf=lambda shape: shape is None)


def sharded(cache: Any, policy: Policy) -> Any:
    """Returns the cache with its arrays constrained to the mesh, as their logical axes say."""

    def constrain(leaf: Any) -> Any:
        if not isinstance(leaf, Cached):
            return leaf
        return replace(leaf, array=policy.shard(leaf.array, *mesh_axes(leaf, policy)))

    return jax.tree.map(constrain, cache, is_leaf=lambda leaf: isinstance(leaf, Cached))


def mesh_axes(cached: Cached, policy: Policy) -> tuple[AxisName, ...]:
    """Returns the mesh axis of each dimension of a cached array, including the dimension of layers in front."""
    split = policy.logical_axes(cached.axes)
    return (None,) * (cached.array.ndim - len(split)) + split
