"""Checks whether the adapters in a file fit a model: all problems are reported before the model changes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from easydel.checkpoint import Tensor
from easydel.errors import CheckpointError, UnsupportedModelError, listed
from easydel.forms import by_rows
from easydel.lora.linear import LoRA
from easydel.lora.places import Place, per_layer_shapes
from easydel.module import LanguageModel
from easydel.quantize import quantize_rows
from easydel.tree import ADAPTERS, flatten
from easydel.weights.export import on_host
from easydel.weights.expressions import source_names
from easydel.weights.sources import is_number

PREFIX = "base_model.model."


def tensor_names(module: str) -> list[str]:
    """Returns PEFT's names of the adapters of a checkpoint's module, in the order of `ADAPTERS`."""
    return [f"{PREFIX}{module}.{leaf}.weight" for leaf in ADAPTERS]


def copy_name(module: str) -> str:
    """Returns PEFT's name of an adapted module's kernel, which its files hold too if the module is the head."""
    return f"{PREFIX}{module}.base_layer.weight"


def check_fit(
    model: LanguageModel, lora: LoRA, places: Mapping[str, Place], tensors: Mapping[str, Tensor], file: Path
) -> None:
    """Checks a file's adapters. `places` are the adapted places in the file, by their names in the checkpoint.

    Raises UnsupportedModelError for modules of the model that cannot have adapters here, CheckpointError for adapters
    without a module and for broken ones.
    """
    if fixed := _fixed(model, places, tensors):
        raise UnsupportedModelError(
            f"these cannot have adapters here:{listed(fixed)}",
            file=file,
            hint="merge them with PEFT (merge_and_unload), and load the model that this makes",
        )
    chosen = {place.path: place for place in places.values()}
    parts = [path for path, place in chosen.items() if not all(name in places for name in place.theirs)]
    if parts:
        raise UnsupportedModelError(
            f"scanned layers cannot be adapted in part:{listed(parts)}", file=file, hint="load without scan_layers"
        )
    problems = _misfits(lora, places, tensors)
    if problems or not places:
        told = listed(problems) or " it holds none"
        hint = None if places else "is it another model's?"
        raise CheckpointError(f"the adapters do not fit the model:{told}", file=file, hint=hint)


def _fixed(model: LanguageModel, places: Mapping[str, Place], tensors: Mapping[str, Tensor]) -> list[str]:
    """Returns the file's adapted modules that the model has, but not as a Linear.

    These are embeddings, tied heads, experts, and kernels that are fused or not only multiplied with.
    """
    pattern = re.compile(rf"{re.escape(PREFIX)}(.+)\.lora_(embedding_)?[AB](\.weight)?")
    adapted = {match[1] for name in tensors if (match := pattern.fullmatch(name))} - places.keys()
    if not adapted:
        return []
    shapes = per_layer_shapes(model)
    known = source_names({path: model.names.expression(path, shapes) for path in shapes})
    return sorted(adapted & {*(name.removesuffix(".weight") for name in known), model.names.theirs("lm_head")})


def _misfits(lora: LoRA, places: Mapping[str, Place], tensors: Mapping[str, Tensor]) -> list[str]:
    """Returns the problems of the file's adapters for these places."""
    expected = {
        tensor: shape
        for name, place in places.items()
        for tensor, shape in zip(tensor_names(name), place.shapes(lora.r), strict=True)
    }
    there = {name: tensor for name, tensor in tensors.items() if name in expected}
    copies = set(map(copy_name, places))
    return [
        *(f"{name} has no place in the model" for name in tensors if name not in expected and name not in copies),
        *(f"{name} is missing" for name in expected if name not in tensors),
        *(
            f"{name} is {list(tensor.shape)}, expected {list(expected[name])}"
            for name, tensor in there.items()
            if tuple(tensor.shape) != expected[name]
        ),
        *(f"{name} is {tensor.dtype}" for name, tensor in tensors.items() if not is_number(tensor.dtype)),
    ]


def check_copies(model: LanguageModel, places: Mapping[str, Place], tensors: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError if a kernel that the file holds beside its adapters is not the model's.

    A kernel stored by blocks is not compared: each library makes floats of it in its own precision.
    """
    leaves = flatten(model.params)
    for name, place in places.items():
        tensor = tensors.get(copy_name(name))
        if tensor is not None and place.module.form in (None, by_rows(np.dtype(np.int8), place.inputs)):
            row = place.theirs.index(name) if place.stacked else None
            if not _equal(tensor.read(), on_host(leaves[f"{place.path}/kernel"], row)):
                raise CheckpointError(
                    "differs from the model's own kernel: the adapters are for another one",
                    file=tensor.file,
                    tensor=tensor.name,
                )


def _equal(copy: np.ndarray, kernel: np.ndarray) -> bool:
    """True if both hold the same numbers after rounding to the narrower of their dtypes."""
    if copy.shape != kernel.shape:
        return False
    if kernel.dtype == np.int8:
        return np.array_equal(quantize_rows(copy)[0], kernel)
    narrow = min(copy.dtype, kernel.dtype, key=lambda dtype: dtype.itemsize)
    return np.array_equal(copy.astype(narrow), kernel.astype(narrow))
