"""The places in a model where adapters can stand, under both names of each module, and the ways to put them there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from easydel.errors import ArgumentError, UnsupportedModelError, listed
from easydel.layers.experts import ExpertLinear
from easydel.lora.forms import EXPERTS
from easydel.lora.modules import Adapted, Base, adapted_module
from easydel.lora.record import LoRA, ends
from easydel.module import LanguageModel
from easydel.stored import storable
from easydel.tree import Tree, bind, flatten, module_at, unflatten
from easydel.weights.expressions import Expression, Rows, Source, Stack, Transpose, source_names
from easydel.weights.plan import head_and_embedding


class Home(NamedTuple):
    """The matrix that PEFT adapts for one layer of a place: its module, and of experts the module's `parameter`.

    Of one that other places share, `rows` are those of this place, out of `total`.
    """

    module: str
    parameter: str | None = None
    rows: np.ndarray | None = None
    total: int = 0

    @property
    def name(self) -> str:
        return self.module if self.parameter is None else f"{self.module}.{self.parameter}"


@dataclass(frozen=True)
class Place:
    """A Linear, the kernels of experts, or an embedding in a model.

    `paths` are its per-layer paths, `homes` what PEFT adapts for it: one for each path, or None if that cannot be.
    """

    model: LanguageModel
    path: str
    paths: tuple[str, ...]
    homes: tuple[Home | None, ...]

    @property
    def module(self) -> Base:
        """The module that is there now."""
        return module_at(self.model, self.path.split("/"))

    def put(self, module: Base) -> None:
        """Puts another module there."""
        *parents, name = self.path.split("/")
        setattr(module_at(self.model, parents), name, module)

    @property
    def leaf(self) -> str:
        """The name of the matrix among the parameters."""
        return self.module.matrix

    @property
    def matrix(self) -> str:
        """The path of the matrix."""
        return f"{self.path}/{self.leaf}"

    @property
    def is_experts(self) -> bool:
        return isinstance(self.module, ExpertLinear)

    @property
    def stacked(self) -> bool:
        return self._shape != self.layer_shape

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """The shape of one layer's matrix."""
        return self._shape[-3:] if self.is_experts else self._shape[-2:]

    @property
    def _shape(self) -> tuple[int, ...]:
        return self.module.shape

    @property
    def sides(self) -> tuple[int, int]:
        """Outputs and inputs, as adapters see them: those of an embedding are features and rows."""
        one, other = self.layer_shape[-2:]
        return (other, one) if self.leaf == "embedding" else (one, other)

    def shapes(self, lora: LoRA) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of one layer's adapters."""
        outputs, inputs = self.sides
        stack = self.layer_shape[:-2]
        shapes = {"lora_A": (*stack, lora.r, inputs), "lora_B": (*stack, outputs, lora.r)}
        return shapes | ({"lora_magnitude": (outputs,)} if lora.use_dora else {})

    def arranged(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Combines one array for each of its layers into the parameter's form."""
        return np.stack(rows) if self.stacked else rows[0]

    @cached_property
    def names(self) -> list[tuple[str, ...]]:
        """The names of each layer's module: the checkpoint's and ours."""
        ours = [path.replace("/", ".") for path in self.paths]
        return [(own,) if home is None else (home.name, own) for home, own in zip(self.homes, ours, strict=True)]

    def selected(self, lora: LoRA) -> list[bool]:
        """Returns for each of the place's layers whether it is a target."""
        if self.is_experts:
            return [ends(names, lora.target_parameters) for names in self.names]
        if self.leaf == "embedding" and lora.all_linear:
            return [False for _ in self.names]
        return [lora.selects(names) for names in self.names]

    def lora_of(self, lora: LoRA) -> list[LoRA]:
        """Returns the record of each of the place's layers."""
        return [lora.at(*names) for names in self.names]


def places_of(model: LanguageModel) -> list[Place]:
    """Returns every Linear, embedding and kernel of experts of the model."""
    layer_paths, per_layer = model.canonical_paths(), per_layer_shapes(model)
    places = []
    for matrix, module in storable(model).items():
        path, leaf = matrix.rpartition("/")[0], module.matrix
        paths = tuple(part.removesuffix(f"/{leaf}") for part in layer_paths[matrix])
        homes = tuple(_home(model, f"{part}/{leaf}", per_layer) for part in paths)
        places.append(Place(model, path, paths, homes))
    return places


def _home(model: LanguageModel, path: str, shapes: Mapping[str, tuple[int, ...]]) -> Home | None:
    expression: Expression = model.names.expression(path, shapes)
    rows, total = None, 0
    if isinstance(expression, Stack):
        return _experts_home(path, shapes)
    if isinstance(expression, Rows) and expression.dim == -2:
        rows, total, expression = expression.index, expression.total, expression.of
    expression = expression.of if isinstance(expression, Transpose) else expression
    if not isinstance(expression, Source):
        return None
    if len(shapes[path]) == 2:
        return Home(expression.name.removesuffix(".weight"), None, rows, total)
    module, _, parameter = expression.name.rpartition(".")
    return Home(module, parameter, rows, total) if parameter in EXPERTS else None


def _experts_home(path: str, shapes: Mapping[str, tuple[int, ...]]) -> Home | None:
    """Returns the home of experts that the checkpoint stores one by one, and transformers in one parameter."""
    stem, part = path.rsplit("/", 2)[:2]
    gated = f"{stem}/gate_proj/kernel" in shapes
    parameter = "gate_up_proj" if gated and part in EXPERTS["gate_up_proj"] else part
    if "experts" not in stem.split("/") or parameter not in EXPERTS:
        return None
    sizes = [shapes[f"{stem}/{own}/kernel"][-2] for own in EXPERTS[parameter]]
    start = sum(sizes[: EXPERTS[parameter].index(part)])
    rows = None if len(sizes) == 1 else np.arange(start, start + shapes[path][-2])
    return Home(stem.replace("/", "."), parameter, rows, sum(sizes))


def per_layer_shapes(model: LanguageModel) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the model's parameters by path, as they would be without scanned layers."""
    shapes = {path: leaf.shape for path, leaf in flatten(model.params).items()}
    shapes |= {path: owner.shape for path, owner in storable(model).items()}
    return {
        part: shapes[path] if parts == [path] else shapes[path][1:]
        for path, parts in model.canonical_paths().items()
        for part in parts
    }


def adapted_places(model: LanguageModel) -> list[Place]:
    """Returns the places that have adapters."""
    return [place for place in places_of(model) if isinstance(place.module, Adapted)]


def trained_with(model: LanguageModel) -> list[str]:
    """Returns the parameters that are trained beside the adapters: biases and whole modules, as their record says."""
    adapted = adapted_places(model)
    if not adapted:
        return []
    lora = record_of(adapted[0])
    beside = {place.path for place in adapted} if lora.bias == "lora_only" else None
    paths = model.canonical_paths()
    whole = [
        path for path in paths if "lora_" not in path and lora.modules_to_save and _saved(model, paths[path], lora)
    ]
    biases = [] if lora.bias == "none" else [path for path in paths if path.endswith("/bias")]
    chosen = {*whole, *(path for path in biases if beside is None or path.removesuffix("/bias") in beside)}
    return [path for path in paths if path in chosen]


def _saved(model: LanguageModel, parts: Sequence[str], lora: LoRA) -> bool:
    """True if a module around a parameter, or its own, is one of `modules_to_save`."""
    dotted = [part.rsplit("/", 1)[0].replace("/", ".") for part in parts]
    names = [name for own in dotted for name in (own, model.names.theirs(own))]
    around = [name.rsplit(".", cut)[0] for name in names for cut in range(name.count(".") + 1)]
    return lora.saves(around)


def tied_names(model: LanguageModel, names: Collection[str]) -> list[str]:
    """Returns those of the checkpoint's tensors that are both token vectors and head, which PEFT would tear apart."""
    if not model.record.head.tied or model.record.has_encoder:
        return []
    return [name for name in head_and_embedding(model.names) if name in names]


def record_of(place: Place) -> LoRA:
    """Returns the record of an adapted place."""
    assert isinstance(place.module, Adapted)
    return place.module.lora


def targeted(model: LanguageModel, lora: LoRA) -> list[Place]:
    """Returns the places that `lora` names. ArgumentError or UnsupportedModelError if one cannot have adapters."""
    places = places_of(model)
    chosen = [place for place in places if any(place.selected(lora))]
    targets = [lora.target_modules] if isinstance(lora.target_modules, str) else lora.target_modules
    alone = [replace(lora, target_modules=_one(lora, target), target_parameters=()) for target in targets]
    alone += [replace(lora, target_modules=(), target_parameters=(target,)) for target in lora.target_parameters]
    named = [*targets, *lora.target_parameters]
    used = [any(any(place.selected(one)) for place in places) for one in alone]
    idle = [target for target, is_used in zip(named, used, strict=True) if not is_used]
    if idle or not chosen:
        known = {place.path.rpartition("/")[2] for place in places if not place.is_experts}
        experts = {home.name.split(".", 3)[-1] for place in places if place.is_experts for home in place.homes if home}
        hint = f"{', '.join(sorted(known))} are those of this model"
        more = f"; target_parameters may name {', '.join(sorted(experts))}" if experts else ""
        raise ArgumentError(f"target_modules {idle} name no Linear", hint=hint + more)
    check_whole([place.path for place in chosen if not all(place.selected(lora)) or len({*place.lora_of(lora)}) > 1])
    check_free(model, chosen)
    if lora.lora_dropout and any(place.is_experts for place in chosen):
        raise ArgumentError("lora_dropout is not for experts: PEFT loads no such adapters", hint="leave it at 0")
    if lora.use_dora and any(place.is_experts for place in chosen):
        raise ArgumentError("use_dora is not for experts: PEFT loads no such adapters", hint="leave it out")
    _check_saved(model, lora)
    return chosen


def _check_saved(model: LanguageModel, lora: LoRA) -> None:
    """Raises ArgumentError for modules_to_save that name no module, or one that is both token vectors and head."""
    shapes, paths = per_layer_shapes(model), model.canonical_paths()
    saved = {
        name: [
            part for parts in paths.values() for part in parts if _saved(model, parts, LoRA(modules_to_save=(name,)))
        ]
        for name in lora.modules_to_save
    }
    if idle := [name for name, parts in saved.items() if not parts]:
        raise ArgumentError(f"modules_to_save {idle} name no module")
    parts = {part for own in saved.values() for part in own}
    if tied := tied_names(model, source_names({part: model.names.expression(part, shapes) for part in parts})):
        hint = "adapters of it (target_modules) are possible"
        problem = f"modules_to_save has {', '.join(tied)}, which is also the head: PEFT would train only one of the two"
        raise ArgumentError(problem, hint=hint)


def _one(lora: LoRA, target: str) -> str | tuple[str, ...]:
    return target if isinstance(lora.target_modules, str) else (target,)


def check_whole(parts: Sequence[str]) -> None:
    """Raises ArgumentError for scanned layers that only some of would be adapted, or not all alike."""
    if parts:
        raise ArgumentError(
            f"scanned layers cannot be adapted in part:{listed(parts)}", hint="load without scan_layers"
        )


def check_free(model: LanguageModel, chosen: Sequence[Place]) -> None:
    """Raises ArgumentError if the model has adapters, UnsupportedModelError for modules that cannot have one."""
    if adapted_places(model):
        raise ArgumentError("the model has adapters already", hint="merge_adapters(model) makes room for others")
    if homeless := [place.path for place in chosen if None in place.homes]:
        problems = [f"{path}: the checkpoint stores it in a way that PEFT has no adapters for" for path in homeless]
        raise UnsupportedModelError(
            f"these cannot have adapters:{listed(problems)}", hint="choose other target_modules"
        )


def adapt(model: LanguageModel, chosen: Mapping[str, tuple[Place, LoRA]]) -> None:
    """Puts modules with adapters, which have no values yet, in the chosen places."""
    for place, lora in chosen.values():
        place.put(adapted_module(place.module, lora))
    model.forget_compiled()


def give(model: LanguageModel, chosen: Sequence[Place], arrays: Mapping[str, np.ndarray]) -> Tree:
    """Sets the adapters to `arrays`, whole on every device that has a part of the matrix. Returns the parameters."""
    leaves = flatten(model.params)
    for place in chosen:
        sharding = leaves[place.matrix].sharding
        whole = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding
        for path in (path for path in arrays if path.rsplit("/", 1)[0] == place.path and "lora_" in path):
            leaves[path] = jax.jit(jnp.copy, out_shardings=whole)(arrays[path])  # JAX's own memory: it is donated
    for path in arrays.keys() - leaves.keys():
        raise AssertionError(path)
    return rebind(model, leaves)


def rebind(model: LanguageModel, leaves: Mapping[str, Any]) -> Tree:
    """Gives the model parameters by path, after its modules have changed. Returns them as a nested dict."""
    params = unflatten(leaves)
    bind(model, params)
    model.forget_compiled()
    return params
