"""The places in a model where adapters can stand, under both names of each module, and the ways to put them there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from easydel.errors import ArgumentError, UnsupportedModelError, listed
from easydel.layers.linear import Linear
from easydel.lora.linear import AdaptedLinear, LoRA
from easydel.module import LanguageModel
from easydel.stored import storable
from easydel.tree import ADAPTERS, Tree, bind, flatten, unflatten
from easydel.weights.expressions import Source, Transpose

# Multi-head latent attention uses this kernel without calling the module, so it would ignore an adapter.
NOT_CALLED = "kv_b_proj"


@dataclass(frozen=True)
class Place:
    """A Linear in a model: attribute `name` of `owner`.

    `paths` are its per-layer paths, `theirs` its names in the checkpoint: one for each path, or None if the checkpoint
    stores it together with others.
    """

    owner: Any
    name: str
    path: str
    paths: tuple[str, ...]
    theirs: tuple[str | None, ...]

    @property
    def module(self) -> Linear:
        return getattr(self.owner, self.name)

    @property
    def inputs(self) -> int:
        return self.module.shape[-1]

    @property
    def outputs(self) -> int:
        return self.module.shape[-2]

    @property
    def stacked(self) -> bool:
        return len(self.module.shape) == 3

    def shapes(self, r: int) -> list[tuple[int, int]]:
        """Returns the shapes of one layer's adapters, in the order of `ADAPTERS`."""
        return [(r, self.inputs), (self.outputs, r)]

    def arranged(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Combines one array for each of its layers into the parameter's form."""
        return np.stack(rows) if self.stacked else rows[0]

    def selected(self, lora: LoRA) -> list[bool]:
        """Returns for each of the place's layers whether it is a target."""
        pairs = zip(self.paths, self.theirs, strict=True)
        return [lora.selects([name for name in (theirs, path.replace("/", ".")) if name]) for path, theirs in pairs]


def places_of(model: LanguageModel) -> list[Place]:
    """Returns every Linear of the model."""
    layer_paths, per_layer = model.canonical_paths(), per_layer_shapes(model)

    def theirs(path: str) -> str | None:
        expression = model.names.expression(f"{path}/kernel", per_layer)
        expression = expression.of if isinstance(expression, Transpose) else expression
        return expression.name.removesuffix(".weight") if isinstance(expression, Source) else None

    places = []
    for owner, name, path in _linears(model, ""):
        paths = tuple(part.removesuffix("/kernel") for part in layer_paths[f"{path}/kernel"])
        places.append(Place(owner, name, path, paths, tuple(map(theirs, paths))))
    return places


def per_layer_shapes(model: LanguageModel) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the model's parameters by path, as they would be without scanned layers."""
    shapes = {path: leaf.shape for path, leaf in flatten(model.params).items()}
    shapes |= {path: owner.shape for path, owner in storable(model).items()}
    return {
        part: shapes[path] if parts == [path] else shapes[path][1:]
        for path, parts in model.canonical_paths().items()
        for part in parts
    }


def _linears(module: Any, prefix: str) -> Iterator[tuple[Any, str, str]]:
    children = enumerate(module) if isinstance(module, nnx.List) else list(vars(module).items())
    for name, child in children:
        if isinstance(child, Linear):
            yield module, str(name), f"{prefix}{name}"
        elif isinstance(child, nnx.Module | nnx.List) and not str(name).startswith("_"):
            yield from _linears(child, f"{prefix}{name}/")


def adapted_places(model: LanguageModel) -> list[Place]:
    """Returns the places that have adapters."""
    return [place for place in places_of(model) if isinstance(place.module, AdaptedLinear)]


def targeted(model: LanguageModel, lora: LoRA) -> list[Place]:
    """Returns the places that `lora` names. ArgumentError or UnsupportedModelError if one cannot have adapters."""
    places = places_of(model)
    chosen = [place for place in places if any(place.selected(lora))]
    targets = [lora.target_modules] if isinstance(lora.target_modules, str) else lora.target_modules
    idle = [
        target
        for target in targets
        if not any(any(place.selected(replace(lora, target_modules=_one(lora, target)))) for place in places)
    ]
    if idle or not chosen:
        leaves = ", ".join(sorted({place.name for place in places}))
        raise ArgumentError(f"target_modules {idle} name no Linear", hint=f"{leaves} are those of this model")
    parts = [place.path for place in chosen if not all(place.selected(lora))]
    if parts:
        raise ArgumentError(
            f"scanned layers cannot be adapted in part:{listed(parts)}", hint="load without scan_layers"
        )
    check_free(model, chosen)
    return chosen


def _one(lora: LoRA, target: str) -> str | tuple[str, ...]:
    return target if isinstance(lora.target_modules, str) else (target,)


def check_free(model: LanguageModel, chosen: Sequence[Place]) -> None:
    """Raises ArgumentError if the model has adapters, UnsupportedModelError for modules that cannot have one."""
    if adapted_places(model):
        raise ArgumentError("the model has adapters already", hint="merge_adapters(model) makes room for others")
    fused = [place.path for place in chosen if None in place.theirs]
    direct = [place.path for place in chosen if place.name == NOT_CALLED]
    problems = [f"{path}: the checkpoint stores it in one tensor with others" for path in fused]
    problems += [f"{path}: attention uses its kernel directly" for path in direct]
    if problems:
        raise UnsupportedModelError(
            f"these cannot have adapters:{listed(problems)}", hint="choose other target_modules"
        )


def adapt(model: LanguageModel, lora: LoRA, chosen: Sequence[Place]) -> None:
    """Puts modules with adapters, which have no values yet, in the chosen places."""
    for place in chosen:
        setattr(place.owner, place.name, AdaptedLinear(place.module, lora))
    model.forget_compiled()


def give(model: LanguageModel, chosen: Sequence[Place], arrays: Mapping[str, np.ndarray]) -> Tree:
    """Sets the adapters to `arrays`, whole on every device that has a part of the kernel. Returns the parameters."""
    leaves = flatten(model.params)
    for place in chosen:
        sharding = leaves[f"{place.path}/kernel"].sharding
        whole = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding
        for leaf in ADAPTERS:
            path = f"{place.path}/{leaf}"
            leaves[path] = jax.jit(jnp.copy, out_shardings=whole)(arrays[path])  # JAX's own memory: it is donated
    return rebind(model, leaves)


def rebind(model: LanguageModel, leaves: Mapping[str, Any]) -> Tree:
    """Gives the model parameters by path, after its modules have changed. Returns them as a nested dict."""
    params = unflatten(leaves)
    bind(model, params)
    model.forget_compiled()
    return params
