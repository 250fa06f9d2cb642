"""Adds adapters to a model, and merges them into its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from easydel.errors import ArgumentError
from easydel.forms import BESIDE
from easydel.layers.linear import Embedding
from easydel.lora.modules import AdaptedEmbedding, AdaptedLinear, lengths, plain_module
from easydel.lora.places import Place, adapt, adapted_places, give, rebind, targeted
from easydel.lora.record import LoRA
from easydel.module import LanguageModel
from easydel.tree import ADAPTERS, Tree, bind, flatten, replica


def add_adapters(model: LanguageModel, lora: LoRA, *, seed: int = 0) -> Tree:
    """Gives `model` fresh adapters that change nothing yet (B is 0). Returns its parameters with them.

    Raises ArgumentError if it has adapters, or if targets name no module or a module that cannot be adapted.
    """
    chosen = targeted(model, lora)
    records = {place.path: (place, place.lora_of(lora)[0]) for place in chosen}
    arrays: dict[str, np.ndarray] = {}
    for place, own in records.values():
        shapes = place.shapes(own)
        starts = [_start(shapes["lora_A"], seed, path) for path in place.paths]
        arrays[f"{place.path}/lora_A"] = place.arranged(starts)
        arrays[f"{place.path}/lora_B"] = place.arranged([np.zeros(shapes["lora_B"], np.float32)] * len(starts))
    adapt(model, records)
    if lora.use_dora:
        arrays |= {f"{place.path}/lora_magnitude": _lengths(place, arrays) for place in chosen}
    return give(model, chosen, arrays)


def _start(shape: tuple[int, ...], seed: int, path: str) -> np.ndarray:
    """Returns the first A, as PEFT's: Kaiming's uniform distribution with a = sqrt(5)."""
    random = np.random.default_rng([seed, *path.encode()])
    bound = shape[-1] ** -0.5
    return random.uniform(-bound, bound, shape).astype(np.float32)


def _lengths(place: Place, arrays: Mapping[str, np.ndarray]) -> Any:
    """Returns the lengths of the base's rows: with these, DoRA changes nothing yet."""
    module = place.module
    assert isinstance(module, AdaptedLinear | AdaptedEmbedding)
    return lengths(module.whole_kernel(), arrays[f"{place.path}/lora_A"], arrays[f"{place.path}/lora_B"], 1.0)


def merge_adapters(model: LanguageModel, params: Mapping[str, Any] | None = None) -> Tree:
    """Adds the adapters of `params` (default: the model's own) to its matrices and removes them.

    Returns the model's parameters. Adapted kernels of codes become floats: rounding again would lose most of what
    was learned. An adapted embedding that is also the head is refused, since only one of the two is adapted.
    """
    leaves = flatten(params or model.params)
    for place in adapted_places(model):
        if isinstance(place.module, Embedding) and model.record.head.tied:
            hint = "save_adapters, and load the model with adapter=: the head then gets a matrix of its own"
            raise ArgumentError(f"{place.path} is the head, too, which the adapters leave as it is", hint=hint)
    for place in adapted_places(model):
        prefix, module = f"{place.path}/", place.module
        names = {path: path.removeprefix(prefix) for path in leaves if path.startswith(prefix)}
        own = {name: leaves[path] for path, name in names.items() if "/" not in name}

        def whole(own: Tree, module: Any = module) -> jax.Array:
            copy = replica(module)
            bind(copy, own)
            return copy.effective().astype(model.policy.param_dtype)

        leaves[place.matrix] = jax.jit(whole, out_shardings=own[place.leaf].sharding)(own)
        for leaf in (*ADAPTERS, *(f"{place.leaf}{end}" for end in BESIDE)):
            leaves.pop(f"{prefix}{leaf}", None)
        place.put(plain_module(module, model.policy))
    model.merged = True
    return rebind(model, leaves)
