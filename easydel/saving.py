"""Writes models: `save_pretrained` in our own layout, `export` as a Hugging Face checkpoint."""

from __future__ import annotations

import filecmp
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from easydel.checkpoint.atomic import as_path
from easydel.checkpoint.files import OWN as OWN_FILES, is_inside
from easydel.checkpoint.tensor import has_nonfinite
from easydel.checkpoint.write import atomic_directory, write_safetensors
from easydel.config import HFConfig
from easydel.errors import ArgumentError, CheckpointError
from easydel.forms import Form, by_rows
from easydel.hub.select import CONFIGS, VOCABULARIES, template_names
from easydel.tree import ADAPTERS, flatten
from easydel.weights.casts import assign
from easydel.weights.export import Entry, Parameters, entries, write_whole
from easydel.weights.export_codes import CodedExport, with_codes
from easydel.weights.expressions import source_names
from easydel.weights.names import OWN, Names
from easydel.weights.saved import Manifest

MAX_SHARD_BYTES = 5 << 30  # as in transformers
# Files beside the weights that belong to the model and are copied along; for those of a tokenizer see `_companions`.
GENERATION = "generation_config.json"
TOKENIZER = frozenset(CONFIGS | VOCABULARIES) - {"config.json", GENERATION}
INT8 = np.dtype(np.int8)
logger = logging.getLogger(__name__)


def save(
    directory: str | PathLike[str],
    params: Mapping[str, Any],
    layer_paths: Mapping[str, list[str]],
    config: HFConfig,
    forms: Mapping[str, Form],
    *,
    origin: Path | None,
    tokenizer: Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    allow_nonfinite: bool = False,
) -> None:
    """Writes parameters as they are stored, codes as `forms` has them, under their own names, layer by layer.

    Raises CheckpointError, and leaves the old files, if one is NaN or Inf: loading relies on finite weights.
    """
    place, parameters = as_path(directory), Parameters(_without_adapters(params), layer_paths, forms)
    shapes = parameters.shapes()
    stored = {part: form for part in shapes if (form := parameters.form_of(part)) is not None}
    int8 = tuple(part for part, form in stored.items() if form == by_rows(INT8, shapes[part][-1]))
    manifest = Manifest(int8, {part: form for part, form in stored.items() if part not in set(int8)})

    def write(tensors: Sequence[Entry]) -> None:
        checked = tensors if allow_nonfinite else [_finite(place, *tensor) for tensor in tensors]
        _write(place, checked, config.to_dict(), manifest, (origin, tokenizer), max_shard_bytes)

    write_whole(parameters.leaves, entries(parameters, OWN), write)


def _without_adapters(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns leaves by path. Raises ArgumentError if there are adapters, which these files have no place for."""
    leaves = flatten(params)
    if any(path.endswith(ADAPTERS) for path in leaves):
        hint = "easydel.lora.save_adapters writes them alone, merge_adapters adds them to the kernels"
        raise ArgumentError("the model has adapters", hint=hint)
    return leaves


def _finite(
    directory: Path, name: str, shape: tuple[int, ...], dtype: np.dtype, values: Callable[[], np.ndarray]
) -> Entry:
    def checked() -> np.ndarray:
        array = values()
        if has_nonfinite(array):
            hint = "allow_nonfinite=True saves it all the same"
            raise CheckpointError("has values that are NaN or Inf", file=directory, tensor=name, hint=hint)
        return array

    return name, shape, dtype, checked


def _cast(directory: Path, dtype: np.dtype | None, tensor: Entry) -> Entry:
    """Returns the tensor as `dtype`, if that is given. Raises CheckpointError if a value does not fit."""
    name, shape, own, values = tensor
    wanted = own if dtype is None else dtype

    def cast() -> np.ndarray:
        array = values()
        if array.dtype == wanted:
            return array
        out = np.empty(shape, wanted)
        assign(out, array, name, argument="dtype", file=directory)
        return out

    return name, shape, wanted, cast


def export(
    directory: str | PathLike[str],
    params: Mapping[str, Any],
    layer_paths: Mapping[str, list[str]],
    config: HFConfig,
    names: Names,
    forms: Mapping[str, Form],
    *,
    fixed: Collection[str] = (),
    origin: Path | None,
    tokenizer: Path | None = None,
    dtype: np.dtype | None = None,
    quantized: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    allow_nonfinite: bool = False,
) -> None:
    """Writes a directory that transformers loads, in its names and layouts: codes as the floats they stand for.

    `dtype` None keeps each parameter's dtype; parameters in `fixed` keep theirs in any case. If `quantized`, codes stay
    codes where compressed-tensors has such; ArgumentError if it has for none.
    Raises CheckpointError, and leaves the old files, if a tensor is NaN or Inf, or too large for float16.
    """
    place, leaves = as_path(directory), _without_adapters(params)
    parameters = Parameters(leaves, layer_paths, forms, dequantized=True)
    tensors = entries(parameters, names)
    kept = set(_tensors_of(fixed, parameters, names))
    values = config.to_dict()
    if quantized:
        coded = with_codes(tensors, Parameters(leaves, layer_paths, forms), names)
        _tell_floats(coded)
        tensors, kept = coded.entries, kept | coded.coded
        values["quantization_config"] = coded.settings
    floats = [entry for entry in tensors if entry[0] not in kept]
    largest = max(floats, key=lambda entry: np.prod(entry[1], dtype=np.int64))
    values |= {"dtype": str(largest[2] if dtype is None else dtype)}
    values.pop("torch_dtype", None)

    def write(tensors: Sequence[Entry]) -> None:
        cast = [_cast(place, None if tensor[0] in kept else dtype, tensor) for tensor in tensors]
        checked = cast if allow_nonfinite else [_finite(place, *tensor) for tensor in cast]
        _write(place, checked, values, None, (origin, tokenizer), max_shard_bytes)

    write_whole(parameters.leaves, tensors, write)


def _tell_floats(coded: CodedExport) -> None:
    """Warns of codes that become floats. Raises ArgumentError if all do."""
    if not coded.coded:
        raise ArgumentError(
            "quantized=True, and no parameter is stored by codes that compressed-tensors has",
            hint="load with load_in_8bit=True or load_in_4bit=True, or export floats",
        )
    if coded.floats:
        told = "%d tensors of codes are exported as floats, since compressed-tensors has no such codes: %s"
        logger.warning(told, len(coded.floats), ", ".join(sorted(coded.floats)[:3]))


def _tensors_of(paths: Collection[str], parameters: Parameters, names: Names) -> Collection[str]:
    """Returns the checkpoint's names of the tensors that parameters with these paths hold."""
    shapes = parameters.shapes()
    parts = [part for path in paths for part in parameters.layer_paths[path]]
    return source_names({part: names.expression(part, shapes) for part in parts}).keys()


def _write(
    directory: Path,
    tensors: Iterable[Entry],
    config: Mapping[str, Any],
    manifest: Manifest | None,
    origins: tuple[Path | None, Path | None],
    max_shard_bytes: int,
) -> None:
    stem = "model" if manifest is None else OWN_FILES
    with atomic_directory(directory) as fresh:
        write_safetensors(fresh, tensors, max_shard_bytes=max_shard_bytes, metadata={"format": "pt"}, stem=stem)
        (fresh / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        if manifest is not None:
            manifest.write(fresh)
        origin, tokenizer = origins
        with _companions_folder(origin, config) as source:
            for name, file in _companions(source, source if tokenizer == origin else tokenizer, directory).items():
                (fresh / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(file, fresh / name)


@contextmanager
def _companions_folder(origin: Path | None, config: Mapping[str, Any]) -> Iterator[Path | None]:
    """Yields the folder with the files beside the weights: the model's own, or one made from its GGUF file."""
    if origin is None or not origin.exists():
        yield None
        return
    from easydel.tokenizer.written import write_gguf_companions

    with TemporaryDirectory() as made:
        written = write_gguf_companions(origin, config, Path(made))
        yield Path(made) if written else origin if origin.is_dir() else origin.parent


def _companions(origin: Path | None, tokenizer: Path | None, directory: Path) -> dict[str, Path]:
    """What to copy: generation settings, and what `directory` lacks of the tokenizer unless it has another one.

    If `directory` has another tokenizer, none of its files are copied: a tokenizer's files must not be mixed.
    """
    found: dict[str, Path] = {}
    for folder, names in ((origin, [GENERATION]), (tokenizer, [*sorted(TOKENIZER), *_templates(tokenizer)])):
        if folder is not None and folder.is_dir():
            there = [name for name in names if (folder / name).is_file()]
            found |= {name: folder / name for name in there if is_inside((folder / name).parent, folder / name)}
    there = sorted(name for name in TOKENIZER if os.path.lexists(directory / name)) + template_names(directory)
    if all(name in found and filecmp.cmp(found[name], directory / name, shallow=False) for name in there):
        return {name: file for name, file in found.items() if name not in there}
    if found.keys() - {GENERATION}:
        logger.warning(
            "%s keeps its own tokenizer (%s), which differs from the model's: to have the latter, remove it first",
            directory,
            ", ".join(there),
        )
    return {name: file for name, file in found.items() if name == GENERATION}


def _templates(folder: Path | None) -> list[str]:
    return [] if folder is None else template_names(folder)
