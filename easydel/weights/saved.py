"""Directories written by `save_pretrained`: our own names, and a manifest that says how parameters are stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from easydel.checkpoint import Tensor
from easydel.checkpoint.problems import Problems
from easydel.errors import CheckpointError
from easydel.forms import FACTOR, GAIN, OFFSET, ORDER, SCALE, Form, by_rows, unpacked
from easydel.weights.coded import KINDS, CodedTensor, Kind
from easydel.weights.expressions import Index, with_ends
from easydel.weights.sources import TensorSource

MANIFEST = "easydel.json"
VERSION, WITH_FORMS, WITH_STEPS = VERSIONS = 1, 2, 3
MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Manifest:
    """How per-layer parameters ("model/layers/0/self_attn/q_proj/kernel") are stored that are not floats.

    Those in `int8` are int8 with a scale for each row; `forms` has all others.
    """

    int8: tuple[str, ...] = ()
    forms: Mapping[str, Form] = field(default_factory=dict)

    def write(self, directory: Path) -> None:
        found: dict[str, Any] = {"format": VERSION, "int8": self.int8}
        if self.forms:
            # versions that know no step would take rows that lie apart for neighbours
            version = WITH_STEPS if any(form.step > 1 for form in self.forms.values()) else WITH_FORMS
            found |= {"format": version, "forms": {path: form.to_json() for path, form in self.forms.items()}}
        (directory / MANIFEST).write_text(json.dumps(found, indent=1))


def read_manifest(directory: Path) -> Manifest:
    """Returns the manifest. Raises CheckpointError without one: `save_pretrained` did not write the directory."""
    file = directory / MANIFEST
    if not file.is_file():
        raise CheckpointError(
            "no such file", file=file, hint="from_torch=False is for directories written by save_pretrained"
        )
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"{file.stat().st_size} bytes")
        found = json.loads(file.read_bytes())
        version, int8 = found["format"], tuple(found["int8"])
        forms = {path: Form.from_json(form) for path, form in found.get("forms", {}).items()}
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror or error}", file=file) from None
    except (AttributeError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"not a manifest ({error!r})", file=file) from None
    if version not in VERSIONS or not all(isinstance(path, str) for path in int8):
        problem = f"format {version!r} is not known, expected one of {list(VERSIONS)}"
        raise CheckpointError(problem, file=file, hint="update easydel")
    return Manifest(int8, forms)


def int8_forms(tensors: Mapping[str, TensorSource], manifest: Manifest) -> Manifest:
    """Returns a manifest of the parameters that are int8 alone, as codes with a scale for each row."""
    shapes = {path: tensors[name].shape for path in manifest.int8 if (name := path.replace("/", ".")) in tensors}
    return Manifest((), {path: by_rows(np.dtype(np.int8), shape[-1]) for path, shape in shapes.items() if shape})


def coded(tensors: Mapping[str, TensorSource], manifest: Manifest, file: Path) -> Mapping[str, TensorSource]:
    """Returns the tensors with one for the codes, scales and shifts of each parameter in the manifest's `forms`.

    Raises CheckpointError if these are missing or do not fit.
    """
    found: dict[str, TensorSource] = dict(tensors)
    problems = Problems(file)
    for path, form in manifest.forms.items():
        name = path.replace("/", ".")
        parts = {end: found.pop(f"{name}{end}", None) for end in form.parts((0, 0))}
        if lacking := [f"{name}{end}" for end, part in parts.items() if part is None]:
            problems.add(f"is listed with a form, and lacks codes, scales or offsets ({', '.join(lacking)})", name)
            continue
        tensor = SavedTensor(name, form, {end: part for end, part in parts.items() if isinstance(part, Tensor)})
        if problem := tensor.problem():
            problems.add(problem, name)
        found[name] = tensor
    problems.check(hint="the manifest and the weights are not of one model")
    return found


@dataclass(frozen=True, eq=False)
class SavedTensor(CodedTensor):
    """A parameter that was stored by codes: its arrays by the endings of their names."""

    name: str
    form: Form
    parts: Mapping[str, Tensor]

    @property
    def file(self) -> Path:
        return self.parts[""].file

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())

    @property
    def shape(self) -> tuple[int, ...]:
        *lead, columns = self.parts[""].shape
        return (*lead, columns * self.form.per_byte)

    @property
    def scale_dtype(self) -> np.dtype:
        return self.parts[SCALE].dtype

    @property
    def shift_dtype(self) -> np.dtype:
        return self.parts[OFFSET].dtype

    @property
    def has_factors(self) -> bool:
        return FACTOR in self.parts

    def problem(self) -> str | None:
        """Returns the reason why the parts do not make a matrix, or None."""
        held, shapes = self.parts[""], self.form.parts(self.shape)
        if held.dtype != self.form.held or len(held.shape) < 2:
            return f"is {held.dtype} {list(held.shape)}, expected {self.form.held} of 2 or more dimensions"
        height, step, rows = self.form.block[0], self.form.step, self.shape[-2]
        if step > 1 and rows % (height * step):
            return f"has blocks of {height} rows {step} apart, which do not fill {rows} rows"
        for end, part in self.parts.items():
            if part.shape != shapes[end]:
                return f"has {part.name} of {list(part.shape)}, expected {list(shapes[end])}"
        if ORDER in self.parts and self.parts[ORDER].source is None:
            found, columns = np.sort(self.parts[ORDER].read(), axis=-1), self.shape[-1]
            if not np.array_equal(found, np.broadcast_to(np.arange(columns), found.shape)):
                return f"has {self.parts[ORDER].name} that is no order of {columns} columns"
        return None

    def extra(self) -> tuple[str, ...]:
        return self.form.extra

    def read(self, index: Index = ()) -> np.ndarray:
        """Returns a slice as float32. Codes are in the order of their blocks, if they have an order."""
        if not {ORDER, GAIN} & {*self.parts}:
            return super().read(index)
        *lead, rows, columns = with_ends(index, self.shape)
        floats = super().read((*lead, rows, slice(None)))
        if ORDER in self.parts:
            place = np.argsort(self.parts[ORDER].read(tuple(lead)), axis=-1)[..., None, :]
            floats = np.take_along_axis(floats, np.broadcast_to(place, (*floats.shape[:-1], place.shape[-1])), axis=-1)
        if GAIN in self.parts:
            floats *= self.parts[GAIN].read(tuple(lead)).astype(np.float32)[..., None, :]
        return floats[..., columns]

    def plain(self, kind: Kind) -> TensorSource | None:
        part = next((part for end, part in self.parts.items() if KINDS[end] == kind), None)
        if part is None:
            return None
        return part if kind not in ("scales", "shifts") or len(part.shape) == len(self.shape) else None

    def packed(self, index: Index, *, turned: bool = False) -> np.ndarray:
        if turned:
            return super().packed(index, turned=True)
        *lead, columns = index
        places = self.form.per_byte
        return self.parts[""].read((*lead, slice(columns.start // places, columns.stop // places)))

    def codes(self, index: Index) -> np.ndarray:
        *lead, columns = index
        places = self.form.per_byte
        first, last = columns.start // places, -(-columns.stop // places)
        codes = unpacked(self.parts[""].read((*lead, slice(first, last))), self.form)
        return codes[..., columns.start - first * places : columns.stop - first * places : columns.step]

    def scales(self, index: Index) -> np.ndarray:
        return self._read(self.parts[SCALE], index)

    def shifts(self, index: Index) -> np.ndarray:
        return self._read(self.parts[OFFSET], index)

    def factors(self, index: Index) -> np.ndarray | None:
        return self.parts[FACTOR].read(index) if FACTOR in self.parts else None

    def _read(self, part: Tensor, index: Index) -> np.ndarray:
        return part.read(index) if len(part.shape) == len(self.shape) else part.read(index[:-1])[..., None]
