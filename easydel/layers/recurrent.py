"""Functions for all mixers that carry a state from token to token."""

from __future__ import annotations

from dataclasses import replace

import jax

from easydel.layers.context import Context
from easydel.layers.part import Cached


def attended(x_BTC: jax.Array, context: Context) -> jax.Array:
    """Returns `x` with zeros on padding: neither convolution (through `in_proj`'s bias) nor state may see it."""
    return x_BTC if context.valid_BT is None else x_BTC * context.valid_BT[..., None].astype(x_BTC.dtype)


def past(cache: dict[str, Cached] | None, name: str) -> jax.Array | None:
    """Returns an array that the previous call left in the cache; None without a cache."""
    return None if cache is None else cache[name].array


def kept(cache: dict[str, Cached] | None, **arrays: jax.Array) -> dict[str, Cached] | None:
    """Returns the cache with new arrays, each in the dtype of the one it replaces."""
    if cache is None:
        return None
    return {name: replace(own, array=arrays[name].astype(own.array.dtype)) for name, own in cache.items()}
