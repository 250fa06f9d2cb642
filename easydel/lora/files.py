"""Adapters to files in PEFT's format, and from files into a model that keeps them as adapters."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from os import PathLike
from typing import Any

import numpy as np

from easydel.checkpoint.write import atomic_directory, write_safetensors
from easydel.errors import ArgumentError, listed
from easydel.families import find_family
from easydel.hub.local import hub_name
from easydel.hub.select import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from easydel.lora.forms import EXPERTS, Factors, flattened, joined
from easydel.lora.opened import PREFIX
from easydel.lora.places import Place, adapted_places, places_of, record_of, trained_with
from easydel.lora.record import LoRA
from easydel.module import LanguageModel
from easydel.stored import forms_of
from easydel.tree import flatten
from easydel.weights.export import Entry, Parameters, entries, on_host, write_whole
from easydel.weights.expressions import source_names


@dataclass(frozen=True, eq=False)
class Matrix:
    """The adapters of one matrix of the checkpoint: of the places that hold parts of it, each with its layer's row."""

    parts: tuple[tuple[Place, int], ...]
    leaves: Mapping[str, Any]

    @cached_property
    def homes(self) -> list[Any]:
        return [place.homes[row] for place, row in self.parts]

    @property
    def is_experts(self) -> bool:
        return self.parts[0][0].is_experts

    @property
    def is_embedding(self) -> bool:
        return self.parts[0][0].leaf == "embedding"

    @cached_property
    def lora(self) -> LoRA:
        """The record of the whole: the ranks of its parts add up, and the scale is that of the first part."""
        first, *others = [record_of(place) for place, _ in self.parts]
        rank = first.r + sum(lora.r for lora in others)
        times = rank / first.r
        return replace(first, r=rank, lora_alpha=first.lora_alpha * (times**0.5 if first.use_rslora else times))

    def factors(self) -> Factors:
        """Returns the factors in the form of files."""
        parts = []
        for place, row in self.parts:
            low, high = (self._values(place, row, leaf) for leaf in ("lora_A", "lora_B"))
            parts.append(Factors(low, high * np.float32(record_of(place).scale / self.lora.scale)))
        if self.homes[0].rows is None:
            whole = parts[0]
        else:
            whole = joined(parts, [home.rows for home in self.homes], self.homes[0].total)
        return flattened(whole) if self.is_experts else whole

    def magnitude(self) -> np.ndarray:
        """Returns the lengths of all rows; of parts without adapters, those of their kernels."""
        if self.homes[0].rows is None:
            return self._values(*self.parts[0], "lora_magnitude")
        lengths = np.zeros(self.homes[0].total, np.float32)
        for (place, row), home in zip(self.parts, self.homes, strict=True):
            lengths[home.rows] = self._values(place, row, "lora_magnitude")
        return lengths

    def _values(self, place: Place, row: int, leaf: str) -> np.ndarray:
        return on_host(self.leaves[f"{place.path}/{leaf}"], row if place.stacked else None)

    def entries(self, prefix: str) -> list[Entry]:
        """Returns the tensors of a file; `prefix` is the module's name in it."""
        shapes = self._shapes()
        names = ("lora_embedding_A", "lora_embedding_B") if self.is_embedding else ("lora_A.weight", "lora_B.weight")
        dtype = np.dtype(np.float32)
        found: list[Entry] = [
            (f"{prefix}.{name}", shapes[number], dtype, partial(lambda number: self.factors()[number], number))
            for number, name in enumerate(names)
        ]
        if self.lora.use_dora:
            found.append((f"{prefix}.lora_magnitude_vector", shapes[2], dtype, self.magnitude))
        return found

    def _shapes(self) -> list[tuple[int, ...]]:
        place, home, rank = self.parts[0][0], self.homes[0], self.lora.r
        outputs, inputs = place.sides
        outputs = outputs if home.rows is None else home.total
        experts = place.layer_shape[0] if place.is_experts else 1
        return [(experts * rank, inputs), (outputs, rank * experts), (outputs,)]


def save_adapters(
    model: LanguageModel, directory: str | PathLike[str], params: Mapping[str, Any] | None = None
) -> None:
    """Writes the adapters of `params` (default: the model's own) as PEFT does; they load in PEFT and here.

    Biases and modules that are trained beside them are written, too. Warns of adapters that PEFT has no place for. If
    parameters are spread over processes, every process has to call this, and the first one writes.
    """
    leaves, adapted = flatten(params or model.params), adapted_places(model)
    if not adapted:
        raise ArgumentError("the model has no adapters", hint="add_adapters(model, LoRA(...)) gives it some")
    matrices = matrices_of(adapted, leaves)
    if record_of(adapted[0]).use_dora:
        _check_dora(matrices)
    depths = _depths(matrices)
    tensors = [entry for name, matrix in matrices.items() for entry in matrix.entries(PREFIX + depths[name])]
    tensors += _beside(model, leaves, {home.name for matrix in matrices.values() for home in matrix.homes})
    settings = _settings(model, matrices)
    _warn_of_peft(model, [name for name, matrix in matrices.items() if not matrix.is_experts])

    def write(tensors: Sequence[Entry]) -> None:
        with atomic_directory(directory, owned=(ADAPTER_CONFIG, "adapter_model.*")) as fresh:
            write_safetensors(fresh, tensors, metadata={"format": "pt"})
            (fresh / "model.safetensors").rename(fresh / ADAPTER_WEIGHTS[0])
            (fresh / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2) + "\n")

    write_whole(leaves, tensors, write)


def matrices_of(places: Sequence[Place], leaves: Mapping[str, Any]) -> dict[str, Matrix]:
    """Returns the checkpoint's matrices that `places` hold, by their names in PEFT."""
    parts: dict[str, list[tuple[Place, int]]] = {}
    for place in places:
        for row, home in enumerate(place.homes):
            if home is not None:
                parts.setdefault(home.name, []).append((place, row))
    return {name: Matrix(tuple(own), leaves) for name, own in parts.items()}


def _check_dora(matrices: Mapping[str, Matrix]) -> None:
    """Raises ArgumentError for a matrix of which only some rows are adapted: the file states the lengths of all."""
    partly = [
        name
        for name, matrix in matrices.items()
        if matrix.homes[0].rows is not None and sum(len(home.rows) for home in matrix.homes) < matrix.homes[0].total
    ]
    if partly:
        hint = "adapt all parts, or leave use_dora out"
        raise ArgumentError(f"PEFT has no DoRA for a part of a matrix:{listed(partly)}", hint=hint)


def _depths(matrices: Mapping[str, Matrix]) -> dict[str, str]:
    """Returns the module's name in files: PEFT nests the parameters of one module, the first one innermost."""
    outer: Counter[str] = Counter()
    names = {}
    for name, matrix in sorted(matrices.items(), key=lambda item: -_order(item[1])):
        module = matrix.homes[0].module
        names[name] = module + ".base_layer" * outer[module]
        outer[module] += matrix.is_experts
    return names


def _order(matrix: Matrix) -> int:
    return [*EXPERTS].index(matrix.homes[0].parameter) if matrix.is_experts else 0


def _beside(model: LanguageModel, leaves: Mapping[str, Any], adapted: set[str]) -> list[Entry]:
    """Returns the parameters that are trained beside the adapters as tensors of the checkpoint."""
    paths = trained_with(model)
    if not paths:
        return []
    layers = model.canonical_paths()
    plain = {path: leaf for path, leaf in leaves.items() if "lora_" not in path}
    parameters = Parameters(plain, {path: layers[path] for path in plain}, forms_of(model), dequantized=True)
    shapes = parameters.shapes()
    chosen = {part for path in paths for part in layers[path]}
    readers = source_names({part: model.names.expression(part, shapes) for part in shapes})
    partly = [name for name, parts in readers.items() if 0 < len(chosen & set(parts)) < len(parts)]
    if partly:
        raise ArgumentError(f"only parts of these tensors are trained:{listed(partly)}", hint="bias='all' trains all")
    found = []
    for name, shape, dtype, values in entries(parameters, model.names):
        if chosen.issuperset(readers[name]):
            module, _, leaf = name.rpartition(".")
            inner = ".base_layer" if leaf == "bias" and module in adapted else ""
            found.append((f"{PREFIX}{module}{inner}.{leaf}", shape, dtype, values))
    return found


def _settings(model: LanguageModel, matrices: Mapping[str, Matrix]) -> dict[str, Any]:
    """Returns what adapter_config.json holds."""
    ranks = Counter((matrix.lora.r, matrix.lora.lora_alpha) for matrix in matrices.values())
    (rank, alpha), _ = ranks.most_common(1)[0]
    first = next(iter(matrices.values())).lora
    origin = model.origin
    if model.merged:
        origin = None
        problem = "other adapters were merged into this model, so these are for a model that no file has"
        warnings.warn(f"{problem}: export it before they are added, and load the export", stacklevel=3)
    if model.layers_in_file is not None:
        origin = None
        problem = f"this model counts its layers otherwise than {model.origin}, and so do these adapters"
        warnings.warn(f"{problem}: they load here, and PEFT adds them to an export of the model", stacklevel=3)
    own = {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: one.lora.r for name, one in matrices.items() if one.lora.r != rank},
        "alpha_pattern": {name: one.lora.lora_alpha for name, one in matrices.items() if one.lora.lora_alpha != alpha},
        "target_modules": _shortest(model, [name for name, matrix in matrices.items() if not matrix.is_experts]),
        "target_parameters": sorted(name for name, matrix in matrices.items() if matrix.is_experts) or None,
        "modules_to_save": list(first.modules_to_save) or None,
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM" if model.record.has_encoder else "CAUSAL_LM",
        "inference_mode": True,
        "fan_in_fan_out": False,
        "base_model_name_or_path": None if origin is None else hub_name(origin) or str(origin),
    }
    return asdict(first) | own


def _warn_of_peft(model: LanguageModel, names: Sequence[str]) -> None:
    """Warns of adapters that PEFT would lose or refuse."""
    model_type = model.config.get("model_type")
    lost = () if model_type is None else find_family(model_type).peft_lacks
    if told := [name for name in names if name.rpartition(".")[2] in lost]:
        warnings.warn(
            f"PEFT does not load the adapters of these modules (load_adapters does):{listed(told)}", stacklevel=3
        )


def _shortest(model: LanguageModel, adapted: Sequence[str]) -> list[str]:
    """Returns the modules' last names if these select no other one, else their whole names."""
    whole = sorted(adapted)
    last = sorted({name.rpartition(".")[2] for name in whole})
    every = {home.name for place in places_of(model) if not place.is_experts for home in place.homes if home}
    selected = [name for name in every if name.rpartition(".")[2] in last]
    return last if sorted(selected) == whole else whole
