"""BitNet b1.58 (Ma et al. 2024, arXiv:2402.17764) as transformers packs it: numbers -1, 0 and 1 and a scale for all.

For W [out, in] a file has weight uint8 [out / 4, in]: byte row r holds, from the lowest bits on, rows r, r + out / 4,
r + out / 2 and r + 3 * out / 4, each number plus one; and weight_scale [1], a divisor (bitlinear) or a factor
(autobitlinear). The model itself rounds activations to 8 bits, which is not done here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from easydel.checkpoint import Tensor
from easydel.errors import UnsupportedModelError
from easydel.weights.coded import Form
from easydel.weights.expressions import Index
from easydel.weights.formats.packed import BYTE, FLOATS, PackedTensor, misshapen
from easydel.weights.formats.unpacking import Unpacking
from easydel.weights.sources import FLOAT32

QUARTERS = 4
SCALE = "_scale"
DIVISORS = {"bitlinear": True, "autobitlinear": False}


@dataclass(frozen=True, eq=False)
class BitnetTensor(PackedTensor):
    """A matrix [out, in] of -1, 0 and 1 times one number, which is the stored one or its inverse."""

    name: str
    packed: Tensor
    scale: Tensor
    inverse: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return self.packed.shape[0] * QUARTERS, self.packed.shape[1]

    @property
    def form(self) -> Form:
        rows, columns = self.shape
        return Form(np.dtype(ml_dtypes.int2), (rows, columns))

    def codes(self, index: Index) -> np.ndarray:
        rows, columns = index
        quarter = self.packed.shape[0]
        taken = np.arange(rows.start, rows.stop, rows.step)
        packed = self.packed.read((slice(None), columns))[taken % quarter]
        numbers = packed >> (2 * (taken // quarter)).astype(np.uint8)[:, None] & 3
        return (numbers - np.uint8(1) & 3).view(ml_dtypes.int2)

    def scales(self, index: Index) -> np.ndarray:
        scale = self.scale.read().astype(FLOAT32).reshape(1, 1)[index]
        with np.errstate(divide="ignore"):  # infinite weights are found, and told with the tensor's name
            return 1 / scale if self.inverse else scale


def read_bitnet(it: Unpacking) -> None:
    """Puts a matrix in the place of each packed weight and its scale."""
    kind, mode = it.settings.get("linear_class", "bitlinear"), it.settings.get("quantization_mode", "offline")
    refused = [
        f"{key}={it.settings[key]!r}"
        for key, known in (("linear_class", kind in DIVISORS), ("quantization_mode", mode == "offline"))
        if not known
    ]
    if it.settings.get("use_rms_norm"):  # a norm of its own before each matrix
        refused.append("use_rms_norm=True")
    if refused:
        raise UnsupportedModelError(
            f"BitNet weights with {', '.join(refused)} are not implemented",
            file=it.file,
            hint="use a checkpoint of linear_class bitlinear or autobitlinear that is packed offline",
        )
    for stem, scale in it.ending(f".weight{SCALE}"):
        weight = it.take(f"{stem}.weight")
        it.take(scale.name)
        if weight is None:
            it.refuse(scale, f"has no {stem}.weight beside it")
        elif problems := list(_problems(weight, scale)):
            it.refuse(weight, "; ".join(problems))
        else:
            it.put(weight.name, BitnetTensor(weight.name, weight, scale, inverse=DIVISORS[kind]))


def _problems(weight: Tensor, scale: Tensor) -> Iterator[str]:
    if len(weight.shape) != 2 or weight.dtype != BYTE:
        yield f"is {weight.dtype} {list(weight.shape)}, expected uint8 of two dimensions"
    yield from misshapen(scale, "its scale is", (1,), *FLOATS)
