"""Adds adapters to a model, and merges them into its kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from easydel.layers.linear import Linear
from easydel.lora.linear import AdaptedLinear, LoRA
from easydel.lora.places import adapt, adapted_places, give, rebind, targeted
from easydel.module import LanguageModel
from easydel.tree import ADAPTERS, Tree, flatten, params_of


def add_adapters(model: LanguageModel, lora: LoRA, *, seed: int = 0) -> Tree:
    """Gives `model` fresh adapters that change nothing yet (B is 0). Returns its parameters with them.

    Raises ArgumentError if it has adapters, or if targets name no module or a module that cannot be adapted.
    """
    chosen = targeted(model, lora)
    adapt(model, lora, chosen)
    arrays = {}
    for place in chosen:
        bound = place.inputs**-0.5  # PEFT's: Kaiming's uniform distribution with a = sqrt(5)
        randoms = [np.random.default_rng([seed, *path.encode()]) for path in place.paths]
        rows = [random.uniform(-bound, bound, (lora.r, place.inputs)).astype(np.float32) for random in randoms]
        arrays[f"{place.path}/lora_A"] = place.arranged(rows)
        arrays[f"{place.path}/lora_B"] = place.arranged([np.zeros((place.outputs, lora.r), np.float32)] * len(rows))
    return give(model, chosen, arrays)


def merge_adapters(model: LanguageModel, params: Mapping[str, Any] | None = None) -> Tree:
    """Adds the adapters of `params` (default: the model's own) to its kernels and removes them. Returns its parameters.

    Adapted kernels of codes become floats: rounding again would lose most of what was learned.
    """
    leaves = flatten(params or model.params)
    for place in adapted_places(model):
        module, path = place.module, place.path
        assert isinstance(module, AdaptedLinear)
        own = {leaf: leaves.pop(f"{path}/{leaf}") for leaf in params_of(module) if leaf != "bias"}
        low, high = (own.pop(leaf) for leaf in ADAPTERS)
        merged = jax.jit(module.merged, out_shardings=own["kernel"].sharding)
        leaves[f"{path}/kernel"] = merged(module.weight_in(own), low, high)
        plain = Linear(place.inputs, place.outputs, module.policy, bias=module.bias is not None)
        plain.kernel, plain.bias = module.kernel, module.bias
        setattr(place.owner, place.name, plain)
    return rebind(model, leaves)
