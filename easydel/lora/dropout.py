"""The random numbers of adapters' dropout: a key for each adapted Linear, given to it like a parameter."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.lora.modules import AdaptedLinear
from easydel.lora.places import adapted_places
from easydel.module import LanguageModel
from easydel.tree import flatten

KEY = "lora_key"
WORDS = 2  # of a key of JAX's default kind


def with_keys(model: LanguageModel) -> LanguageModel:
    """Returns a copy of a model's structure that has a place for a key wherever its adapters have dropout."""
    copy = model.bound(model.params)
    for place in adapted_places(copy):
        module = place.module
        if isinstance(module, AdaptedLinear) and module.lora.lora_dropout:
            layers = module.shape[:-2]
            module.lora_key = nnx.Param(jax.ShapeDtypeStruct((*layers, WORDS), jnp.uint32))
    return copy


def dropout_keys(model: LanguageModel, *counts: Any) -> dict[str, jax.Array]:
    """Returns a key for each place of `with_keys`, by path, for these numbers of steps and parts."""
    places = {path: leaf for path, leaf in flatten(model.params).items() if path.endswith(f"/{KEY}")}
    key = jax.random.key(0, impl="threefry2x32")
    for count in counts:
        key = jax.random.fold_in(key, count)
    keys = {}
    for number, (path, leaf) in enumerate(places.items()):
        own = jax.random.fold_in(key, number)
        keys[path] = jax.random.key_data(jax.random.split(own, leaf.shape[:-1]) if leaf.ndim > 1 else own)
    return keys
