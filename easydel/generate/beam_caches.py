"""Caches of beams: a row for each beam, N of them for each prompt, which swap their contents as beams branch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from easydel.decoder import Cache
from easydel.layers.part import Cached

CROSS = "cross"  # where caches have an encoder's keys and values
# B prompts, N beams of a prompt


def repeated(cache: Cache, width: int) -> Cache:
    """Returns the cache with each prompt's row `width` times."""

    def repeat(leaf: Any) -> Any:
        if isinstance(leaf, Cached):
            return replace(leaf, array=jnp.repeat(leaf.array, width, axis=_batch_dim(leaf)))
        return jnp.repeat(leaf, width, axis=0) if leaf.ndim else leaf

    return jax.tree.map(repeat, cache, is_leaf=_is_cached)


def of_parents(cache: Cache, parents_BN: jax.Array) -> Cache:
    """Returns the cache in which each beam has what its parent, a beam of the same prompt, had read.

    An encoder's keys and values, and the masks of prompts, are the same for all beams of a prompt.
    """

    def reorder(path: tuple[Any, ...], leaf: Any) -> Any:
        shared = not isinstance(leaf, Cached) or any(getattr(step, "key", None) == CROSS for step in path)
        return leaf if shared else replace(leaf, array=of_beams(leaf.array, parents_BN, _batch_dim(leaf)))

    return jax.tree_util.tree_map_with_path(reorder, cache, is_leaf=_is_cached)


def of_beams(rows: jax.Array, parents_BN: jax.Array, dim: int = 0) -> jax.Array:
    """Returns for each beam the row of its parent; `dim` of `rows` counts all beams of all prompts."""
    shape = rows.shape
    beams = rows.reshape(*shape[:dim], *parents_BN.shape, *shape[dim + 1 :])
    # a gather for each prompt, so that a mesh that splits prompts moves nothing between devices
    chosen = jax.vmap(lambda own, parents: jnp.take(own, parents, axis=dim), (dim, 0), dim)(beams, parents_BN)
    return chosen.reshape(shape)


def _batch_dim(cached: Cached) -> int:
    return cached.array.ndim - len(cached.axes) + cached.axes.index("batch")


def _is_cached(leaf: Any) -> bool:
    return isinstance(leaf, Cached)
