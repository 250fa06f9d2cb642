"""Adapters from files into a model that keeps them as adapters: to train on, or to merge later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

import jax
import numpy as np

from easydel.checkpoint import Tensor
from easydel.errors import CheckpointError, UnsupportedModelError, listed
from easydel.forms import by_rows
from easydel.lora.forms import Factors, parted, unflattened
from easydel.lora.opened import AdapterFile, Site, open_adapters, values_of
from easydel.lora.places import Place, adapt, check_free, give, per_layer_shapes, places_of, rebind, tied_names
from easydel.lora.record import LoRA
from easydel.module import LanguageModel
from easydel.quantize import quantize_rows
from easydel.tree import Tree, flatten
from easydel.weights.export import on_host
from easydel.weights.expressions import source_names

Part = tuple[Place, int]  # a place, and the number of one of its layers
HINT = "from_pretrained(..., adapter=) adds all of PEFT's adapters to the weights, while these are read"


def load_adapters(model: LanguageModel, directory: str | PathLike[str]) -> Tree:
    """Gives `model` the adapters that PEFT, or `save_adapters`, wrote to `directory`. Returns its parameters with them.

    Biases and modules that were trained beside them replace the model's. Raises CheckpointError or
    UnsupportedModelError, before the model changes, for files that are broken, do not fit the model, or need features
    that are not implemented.
    """
    adapters = open_adapters(directory, model.layers_in_file)
    taken = _Taken(model, adapters)
    for site, leaves in adapters.adapters.items():
        taken.take(site, leaves)
    beside = _beside(model, adapters, taken.problems)
    taken.fixed += tied_names(model, adapters.whole)
    taken.check()
    chosen = taken.chosen()
    check_free(model, [place for place, _ in chosen.values()])
    _check_copies(model, adapters)
    arrays = taken.arrays()
    adapt(model, chosen)
    give(model, [place for place, _ in chosen.values()], arrays)
    return _replaced(model, beside)


@dataclass
class _Taken:
    """What a file has for each layer of each place of a model, and what does not fit."""

    model: LanguageModel
    adapters: AdapterFile
    found: dict[str, dict[int, dict[str, np.ndarray]]] = field(default_factory=dict)
    records: dict[str, dict[int, LoRA]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    fixed: list[str] = field(default_factory=list)  # parts of the model that cannot have adapters

    def __post_init__(self) -> None:
        self.places = {place.path: place for place in places_of(self.model)}
        self.homes: dict[str, list[Part]] = {}
        for place in self.places.values():
            for row, home in enumerate(place.homes):
                if home is not None:
                    self.homes.setdefault(home.name, []).append((place, row))
        shapes = per_layer_shapes(self.model)
        known = source_names({path: self.model.names.expression(path, shapes) for path in shapes})
        self.known = {*(name.removesuffix(".weight") for name in known), self.model.names.theirs("lm_head")}

    def take(self, site: Site, leaves: Mapping[str, Tensor]) -> None:
        """Takes the adapters of one module."""
        parameter = self.adapters.parameter_of(site)
        name = site.module if site.module in self.homes or parameter is None else f"{site.module}.{parameter}"
        parts = self.homes.get(name) or self.homes.get(self._ours(name), [])
        embedding = bool(parts) and parts[0][0].leaf == "embedding"
        names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        others = sorted(leaves.keys() - {*names, "lora_magnitude_vector"})
        if not parts or others:
            here = bool(parts) or not self.known.isdisjoint((site.module, self.model.names.theirs(site.module)))
            told = self.fixed if here else self.problems
            told.append(site.module if told is self.fixed else f"{next(iter(leaves.values())).name} has no place here")
            return
        if missing := [leaf for leaf in names if leaf not in leaves]:
            self.problems += [f"{self._full(site, leaf)} is missing" for leaf in missing]
            return
        lora = self.adapters.lora.at(name)
        expected = self._expected(parts, lora)
        wrong = [
            f"{tensor.name} is {list(tensor.shape)}, expected {list(shape)}"
            for tensor, shape in zip((leaves[leaf] for leaf in names), expected, strict=True)
            if tuple(tensor.shape) != shape
        ]
        if wrong:
            self.problems += wrong
            return
        factors = Factors(*(values_of(leaves[leaf]) for leaf in names))
        self._share(parts, lora, factors, leaves.get("lora_magnitude_vector"))

    def _ours(self, name: str) -> str:
        module, _, leaf = name.rpartition(".")
        return f"{self.model.names.theirs(module)}.{leaf}"

    def _full(self, site: Site, leaf: str) -> str:
        return f"base_model.model.{site.module}{'.base_layer' * site.depth}.{leaf}"

    def _expected(self, parts: Sequence[Part], lora: LoRA) -> list[tuple[int, int]]:
        place, row = parts[0]
        home = place.homes[row]
        assert home is not None
        outputs, inputs = place.sides
        outputs = outputs if home.rows is None else home.total
        times = place.layer_shape[0] if place.is_experts else 1
        return [(times * lora.r, inputs), (outputs, times * lora.r)]

    def _share(self, parts: Sequence[Part], lora: LoRA, factors: Factors, lengths: Tensor | None) -> None:
        """Gives each part of a matrix its adapters."""
        first = parts[0][0]
        if first.is_experts:
            factors = unflattened(factors, first.layer_shape[0])
        rows: list[Any] = [home.rows for place, row in parts if (home := place.homes[row])]
        shared = [factors] if rows[0] is None else parted(factors, rows)
        magnitude = None if lengths is None else values_of(lengths).ravel()
        for (place, row), own, picked in zip(parts, shared, rows, strict=True):
            if own is None and magnitude is None:
                continue
            own = own or Factors(factors.low, factors.high[..., picked, :])
            rank = own.low.shape[-2]
            times = rank / lora.r
            alpha = lora.lora_alpha * (times**0.5 if lora.use_rslora else times)
            arrays = {"lora_A": own.low, "lora_B": own.high}
            if magnitude is not None:
                arrays["lora_magnitude"] = magnitude if picked is None else magnitude[picked]
            record = replace(lora, r=rank, lora_alpha=alpha, use_dora=magnitude is not None)
            self.found.setdefault(place.path, {})[row] = arrays
            self.records.setdefault(place.path, {})[row] = record

    def check(self) -> None:
        """Raises UnsupportedModelError or CheckpointError for all that does not fit."""
        file = self.adapters.file
        if self.fixed:
            raise UnsupportedModelError(f"these cannot have adapters here:{listed(self.fixed)}", file=file, hint=HINT)
        partly = [
            path
            for path, rows in self.found.items()
            if len(rows) < len(self.places[path].paths) or len({*self.records[path].values()}) > 1
        ]
        if partly:
            problem = f"scanned layers cannot be adapted in part:{listed(partly)}"
            raise UnsupportedModelError(problem, file=file, hint="load without scan_layers")
        if self.problems or not self.found:
            told = listed(self.problems) or " it holds none"
            hint = None if self.found else "is it another model's?"
            raise CheckpointError(f"the adapters do not fit the model:{told}", file=file, hint=hint)

    def chosen(self) -> dict[str, tuple[Place, LoRA]]:
        """Returns the places to adapt, with their records."""
        return {path: (self.places[path], rows[0]) for path, rows in self.records.items()}

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the adapters in the parameters' form."""
        return {
            f"{path}/{leaf}": self.places[path].arranged([rows[row][leaf] for row in sorted(rows)])
            for path, rows in self.found.items()
            for leaf in rows[0]
        }


def _beside(model: LanguageModel, adapters: AdapterFile, problems: list[str]) -> dict[str, np.ndarray]:
    """Returns new values of the parameters that the file has whole tensors for, by path."""
    shapes, left = per_layer_shapes(model), dict(adapters.whole)
    values: dict[str, np.ndarray] = {}
    for path, parts in model.canonical_paths().items():
        expressions = [model.names.expression(part, shapes) for part in parts]
        names = source_names(dict(zip(parts, expressions, strict=True)))
        there = [name for name in names if name in adapters.whole]
        if not there:
            continue
        for name in there:
            left.pop(name, None)
        lacking = [name for name in names if name not in adapters.whole]
        expected = {
            name: shape
            for part, one in zip(parts, expressions, strict=True)
            for name, shape in one.shapes(shapes[part]).items()
        }
        wrong = [name for name in there if tuple(adapters.whole[name].shape) != expected[name]]
        problems += [f"{name} is {list(adapters.whole[name].shape)}, expected {list(expected[name])}" for name in wrong]
        problems += [f"{name} is missing, which is stored together with {there[0]}" for name in lacking]
        if not wrong and not lacking:
            rows = []
            for part, one in zip(parts, expressions, strict=True):
                out = np.empty(shapes[part], np.float32)
                for copy in one.copies(tuple(slice(0, size) for size in out.shape), out):
                    copy.out[...] = values_of(adapters.whole[copy.name])[copy.index]
                rows.append(out)
            values[path] = rows[0] if parts == [path] else np.stack(rows)
    problems += [f"{tensor.name} has no place in the model" for tensor in left.values()]
    return values


def _replaced(model: LanguageModel, values: Mapping[str, np.ndarray]) -> Tree:
    """Gives parameters new values, in the dtype and the places that they have. Returns all parameters."""
    leaves: dict[str, Any] = flatten(model.params)
    for path, value in values.items():
        leaf = leaves[path]
        leaves[path] = jax.device_put(np.asarray(value, leaf.dtype), leaf.sharding)
    return rebind(model, leaves)


def _check_copies(model: LanguageModel, adapters: AdapterFile) -> None:
    """Raises CheckpointError if a matrix that the file holds beside its adapters is not the model's."""
    leaves = flatten(model.params)
    for place in places_of(model):
        for row, home in enumerate(place.homes):
            tensor = None if home is None else adapters.copies.get(f"{home.name}.weight")
            if tensor is not None and place.module.form in (None, by_rows(np.dtype(np.int8), place.sides[1])):
                own = on_host(leaves[place.matrix], row if place.stacked else None)
                if not _equal(tensor.read(), own):
                    raise CheckpointError(
                        "differs from the model's own kernel: the adapters are for another one",
                        file=tensor.file,
                        tensor=tensor.name,
                        hint="from_pretrained(..., adapter=) takes it from the file",
                    )


def _equal(copy: np.ndarray, kernel: np.ndarray) -> bool:
    """True if both hold the same numbers after rounding to the narrower of their dtypes."""
    if copy.shape != kernel.shape:
        return False
    if kernel.dtype == np.int8:
        return np.array_equal(quantize_rows(copy)[0], kernel)
    narrow = min(copy.dtype, kernel.dtype, key=lambda dtype: dtype.itemsize)
    return np.array_equal(copy.astype(narrow), kernel.astype(narrow))
