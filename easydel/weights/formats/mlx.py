"""MLX's formats, as mlx-lm writes them, and transformers' "metal", which is one of them under other names.

For W [..., out, in] of b bits in groups of g columns a file has weight uint32 [..., out, in * b / 32], packed along its
columns, and scales [..., out, in / g]. Mode "affine" has floats there, and biases of the same shape:
W = q * scale + bias. Modes mxfp4, nvfp4 and mxfp8 have small floats as codes, and scales of 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from easydel.checkpoint import Tensor
from easydel.weights.coded import Form
from easydel.weights.expressions import Index
from easydel.weights.formats.bits import read_along_columns, unsigned
from easydel.weights.formats.packed import BYTE, FLOATS, PackedTensor, misshapen
from easydel.weights.formats.unpacking import Unpacking

AFFINE, AFFINE_BITS = "affine", (2, 3, 4, 5, 6, 8)
WORD = np.dtype(np.uint32)


class Small(NamedTuple):
    """A mode with small floats as codes: their dtype and bits, the columns of a block, and the dtype of a scale."""

    code: np.dtype
    bits: int
    block: int
    scale: np.dtype


FP4, FP8 = np.dtype(ml_dtypes.float4_e2m1fn), np.dtype(ml_dtypes.float8_e4m3fn)
POWER = np.dtype(ml_dtypes.float8_e8m0fnu)
MODES = {"mxfp4": Small(FP4, 4, 32, POWER), "nvfp4": Small(FP4, 4, 16, FP8), "mxfp8": Small(FP8, 8, 32, POWER)}


@dataclass(frozen=True, eq=False)
class AffineTensor(PackedTensor):
    """A matrix [..., out, in] of unsigned numbers, with a scale and an offset for each group of columns."""

    name: str
    packed: Tensor
    stored: Tensor
    biases: Tensor
    bits: int
    group: int

    @property
    def shape(self) -> tuple[int, ...]:
        return *self.packed.shape[:-1], self.packed.shape[-1] * 32 // self.bits

    @property
    def form(self) -> Form:
        return Form(unsigned(self.bits), (1, self.group), shift="offset")

    def codes(self, index: Index) -> np.ndarray:
        return read_along_columns(self.packed, index, self.bits).view(unsigned(self.bits))

    def scales(self, index: Index) -> np.ndarray:
        return self.stored.read(index)

    def shifts(self, index: Index) -> np.ndarray:
        return self.biases.read(index)

    def problems(self) -> Iterator[str]:
        *_, columns = self.shape
        blocks = (*self.packed.shape[:-1], columns // self.group)
        if columns % self.group:
            yield f"has {columns} columns, which groups of {self.group} do not divide"
        if self.packed.shape[-1] * 32 % self.bits:
            yield f"is {list(self.packed.shape)}, which numbers of {self.bits} bits do not fill"
        yield from misshapen(self.packed, "is", self.packed.shape, WORD)
        yield from misshapen(self.stored, "its scales are", blocks, *FLOATS)
        yield from misshapen(self.biases, "its biases are", blocks, *FLOATS)


@dataclass(frozen=True, eq=False)
class SmallFloatTensor(PackedTensor):
    """A matrix [..., out, in] of small floats, with a scale of 8 bits for each block of columns."""

    name: str
    packed: Tensor
    stored: Tensor
    kind: Small

    @property
    def shape(self) -> tuple[int, ...]:
        return *self.packed.shape[:-1], self.packed.shape[-1] * 32 // self.kind.bits

    @property
    def form(self) -> Form:
        return Form(self.kind.code, (1, self.kind.block))

    def codes(self, index: Index) -> np.ndarray:
        return read_along_columns(self.packed, index, self.kind.bits).view(self.kind.code)

    def scales(self, index: Index) -> np.ndarray:
        return self.stored.read(index).view(self.kind.scale)

    def problems(self) -> Iterator[str]:
        *_, columns = self.shape
        blocks = (*self.packed.shape[:-1], columns // self.kind.block)
        if columns % self.kind.block:
            yield f"has {columns} columns, which blocks of {self.kind.block} do not divide"
        yield from misshapen(self.packed, "is", self.packed.shape, WORD)
        yield from misshapen(self.stored, "its scales are", blocks, BYTE)


def read_mlx(it: Unpacking) -> None:
    """Puts a matrix in the place of each weight with scales: also of embeddings, heads, routers and stacked experts."""
    for stem, scales in it.ending(".scales"):
        weight, biases = it.take(f"{stem}.weight"), it.take(f"{stem}.biases", f"{stem}.qbiases")
        it.take(scales.name)
        if weight is None:
            it.refuse(scales, f"has no {stem}.weight beside it")
        elif len(weight.shape) < 2:
            it.refuse(weight, f"is {list(weight.shape)}, expected at least two dimensions")
        elif isinstance(tensor := _tensor(it.settings, weight, scales, biases), str):
            it.refuse(weight, tensor)
        elif problems := list(tensor.problems()):
            it.refuse(weight, "; ".join(problems))
        else:
            it.put(tensor.name, tensor)


def _settings(settings: Mapping[str, Any], stem: str, *, affine: bool) -> Mapping[str, Any]:
    """Returns the settings of a module: its own entry under its name, or those of all.

    An entry without a mode is affine in MLX, also where the others are not: the file's biases tell.
    """
    own = settings.get(stem)
    chosen = own if isinstance(own, Mapping) else settings
    mode = chosen.get("mode") or (AFFINE if affine else settings.get("mode"))
    return {"bits": chosen.get("bits"), "group_size": chosen.get("group_size"), "mode": mode}


def _tensor(
    settings: Mapping[str, Any], weight: Tensor, scales: Tensor, biases: Tensor | None
) -> AffineTensor | SmallFloatTensor | str:
    """Returns the matrix, or what is wrong with its settings."""
    own = _settings(settings, weight.name.removesuffix(".weight"), affine=biases is not None)
    mode, bits, group = (own[key] for key in ("mode", "bits", "group_size"))
    kind = MODES.get(mode) if isinstance(mode, str) else None
    if kind is not None:
        if (bits or kind.bits, group or kind.block) != (kind.bits, kind.block):
            return f"has mode={mode} with bits={bits} and group_size={group}, expected {kind.bits} and {kind.block}"
        return SmallFloatTensor(weight.name, weight, scales, kind)
    if mode != AFFINE:
        return f"has mode={mode!r}, expected one of {AFFINE}, {', '.join(MODES)}"
    if biases is None:
        return "has scales and no biases beside it, which the mode affine needs"
    if (
        group is None and type(bits) is int and bits in AFFINE_BITS and scales.shape
    ):  # MLX has a default that may change
        group = weight.shape[-1] * 32 // bits // max(scales.shape[-1], 1)
    if type(bits) is not int or bits not in AFFINE_BITS or type(group) is not int or group <= 0:
        return f"has bits={bits} and group_size={group}, expected one of {AFFINE_BITS}, and more than 0"
    return AffineTensor(weight.name, weight, scales, biases, bits, group)
