"""BitNet b1.58 (Ma et al. 2024, arXiv:2402.17764) as transformers packs it: numbers -1, 0 and 1 and a scale for all.

For W [out, in] a file has weight uint8 [out / 4, in]: byte row r holds, from the lowest bits on, rows r, r + out / 4,
r + out / 2 and r + 3 * out / 4, each number plus one; and weight_scale [1], a divisor (bitlinear) or a factor
(autobitlinear). The model itself rounds activations to 8 bits, which is not done here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from easydel.checkpoint import Tensor
from easydel.errors import UnsupportedModelError
from easydel.weights.coded import Form
from easydel.weights.expressions import Index
from easydel.weights.formats.checks import BYTE, FLOATS, misshapen
from easydel.weights.formats.matrix import Matrix
from easydel.weights.formats.parts import Arranged, Computed, as_codes, integers
from easydel.weights.formats.unpacking import Unpacking
from easydel.weights.sources import FLOAT32

QUARTERS = 4
SCALE = "_scale"
CODE = integers(2, signed=True)
DIVISORS = {"bitlinear": True, "autobitlinear": False}


def read_bitnet(it: Unpacking) -> None:
    """Puts a matrix in the place of each packed weight and its scale."""
    kind, mode = it.settings.get("linear_class", "bitlinear"), it.settings.get("quantization_mode", "offline")
    refused = [
        f"{key}={it.settings[key]!r}"
        for key, known in (("linear_class", kind in [*DIVISORS]), ("quantization_mode", mode == "offline"))
        if not known
    ]
    if it.settings.get("use_rms_norm"):  # a norm of its own before each matrix
        refused.append("use_rms_norm=True")
    if refused:
        raise UnsupportedModelError(
            f"BitNet weights with {', '.join(refused)} are not implemented",
            file=it.config,
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
            it.put(weight.name, _matrix(weight, scale, inverse=DIVISORS[kind]))


def _matrix(weight: Tensor, scale: Tensor, *, inverse: bool) -> Matrix:
    """Returns the matrix [out, in] of -1, 0 and 1 times one number, which is the stored one or its inverse."""
    code, one = Quarters(weight), Arranged(scale, (0, None))
    rows, columns = code.shape
    factor = Computed(one, _inverse, FLOAT32) if inverse else one
    return Matrix(weight.name, Form(CODE, (rows, columns)), (weight, scale), code, factor)


def _inverse(found: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):  # infinite weights are found, and told with the tensor's name
        return 1 / found.astype(FLOAT32)


def _problems(weight: Tensor, scale: Tensor) -> Iterator[str]:
    if len(weight.shape) != 2 or weight.dtype != BYTE:
        yield f"is {weight.dtype} {list(weight.shape)}, expected uint8 of two dimensions"
    yield from misshapen(scale, "its scale is", (1,), *FLOATS)


@dataclass(frozen=True, eq=False)
class Quarters:
    """The codes -1, 0 and 1 of a matrix whose rows are in four parts, which share bytes."""

    packed: Tensor
    dtype: np.dtype = CODE

    @property
    def shape(self) -> tuple[int, int]:
        return self.packed.shape[0] * QUARTERS, self.packed.shape[1]

    def read(self, index: Index = ()) -> np.ndarray:
        rows, columns = index
        together = max(self.packed.shape[0], 1)
        taken = np.arange(*rows.indices(self.shape[0]))
        found = self.packed.read((slice(None), columns))[taken % together]  # of a view of the mapped file
        numbers = found >> (2 * (taken // together)).astype(np.uint8)[:, None] & 3
        return as_codes(numbers, 1, CODE)
