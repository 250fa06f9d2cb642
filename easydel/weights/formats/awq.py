"""AWQ (Lin et al. 2023, arXiv:2306.00978) as AutoAWQ writes it: 4 bits in the order that one of its kernels wants.

For W [out, in] in groups of g columns, with W = (q - zero) * scale:
gemm: qweight int32 [in, out / 8], qzeros int32 [in / g, out / 8], scales [in / g, out].
  Eight rows of W share an integer.
gemv: qweight int32 [out, in / 8], qzeros int32 [out, width], scales [out, 8 * width]; the width has padding.
gemv_fast: qweight int16 [out / 4, in], scales and qzeros [8 * width, out], where a qzero is -zero * scale as a float.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from easydel.checkpoint import Tensor
from easydel.errors import UnsupportedModelError
from easydel.weights.coded import Form
from easydel.weights.expressions import Index
from easydel.weights.formats.bits import read_along_columns, unpacked, unsigned
from easydel.weights.formats.packed import FLOATS, WORD, PackedTensor, misshapen
from easydel.weights.formats.unpacking import Unpacking

BITS = 4
NUMBERS = 8  # in an integer
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # in its integer of gemm, of each of 8 rows of W
TILE_ROWS, TILE_COLUMNS = 4, 64  # of W that gemv_fast stores together
# the columns of W within 32, in the order in which gemv_fast stores them
FAST = np.arange(32).reshape(4, 4, 2).transpose(1, 0, 2).reshape(4, 4, 2).transpose(0, 2, 1).ravel()
HALF = np.dtype(np.int16)


@dataclass(frozen=True, eq=False)
class AwqTensor(PackedTensor):
    """A matrix [out, in] of 4 bits in groups of columns: the layout of gemm, and what the others share with it."""

    name: str
    qweight: Tensor
    stored: Tensor
    qzeros: Tensor
    group: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.qweight.shape[1] * NUMBERS, self.qweight.shape[0]

    @property
    def form(self) -> Form:
        return Form(unsigned(BITS), (1, self.group), shift="zero")

    def codes(self, index: Index) -> np.ndarray:
        return self._numbers(self.qweight, index).view(unsigned(BITS))

    def scales(self, index: Index) -> np.ndarray:
        return self.stored.read(index[::-1]).T

    def shifts(self, index: Index) -> np.ndarray:
        return self._numbers(self.qzeros, index)

    def problems(self) -> Iterator[str]:
        rows, columns = self.shape
        blocks = columns // self.group
        yield from misshapen(self.qweight, "is", (columns, rows // NUMBERS), WORD)
        yield from misshapen(self.stored, "its scales are", (blocks, rows), *FLOATS)
        yield from misshapen(self.qzeros, "its qzeros are", (blocks, rows // NUMBERS), WORD)

    def _numbers(self, packed: Tensor, index: Index) -> np.ndarray:
        rows, columns = index
        first, last = rows.start // NUMBERS, -(-rows.stop // NUMBERS)
        found = unpacked(packed.read((columns, slice(first, last))), BITS)
        ordered = found.reshape(len(found), last - first, NUMBERS)[..., PLACES].reshape(found.shape)
        base = first * NUMBERS
        return ordered[:, rows.start - base : rows.stop - base : rows.step].T


class GemvTensor(AwqTensor):
    """A matrix in the layout of gemv."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.qweight.shape[0], self.qweight.shape[1] * NUMBERS

    def scales(self, index: Index) -> np.ndarray:
        return self.stored.read(index)

    def problems(self) -> Iterator[str]:
        rows, columns = self.shape
        width = _padded(columns // self.group, self.group)
        yield from misshapen(self.qweight, "is", (rows, columns // NUMBERS), WORD)
        yield from misshapen(self.stored, "its scales are", (rows, width), *FLOATS)
        yield from misshapen(self.qzeros, "its qzeros are", (rows, width // NUMBERS), WORD)

    def _numbers(self, packed: Tensor, index: Index) -> np.ndarray:
        return read_along_columns(packed, index, BITS)


class GemvFastTensor(AwqTensor):
    """A matrix in the layout of gemv_fast."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.qweight.shape[0] * TILE_ROWS, self.qweight.shape[1]

    @property
    def form(self) -> Form:
        return Form(unsigned(BITS), (1, self.group), shift="offset")

    def codes(self, index: Index) -> np.ndarray:
        rows, columns = index
        above, left = rows.start // TILE_ROWS, columns.start // TILE_COLUMNS
        below, right = -(-rows.stop // TILE_ROWS), -(-columns.stop // TILE_COLUMNS)
        packed = self.qweight.read((slice(above, below), slice(left * TILE_COLUMNS, right * TILE_COLUMNS)))
        tiles = unpacked(packed, BITS).reshape(below - above, right - left, TILE_ROWS, 2, len(FAST))
        ordered = tiles[..., np.argsort(FAST)].swapaxes(1, 2)
        whole = ordered.reshape((below - above) * TILE_ROWS, (right - left) * TILE_COLUMNS)
        top, first = above * TILE_ROWS, left * TILE_COLUMNS
        return whole[
            rows.start - top : rows.stop - top : rows.step, columns.start - first : columns.stop - first : columns.step
        ].view(unsigned(BITS))

    def shifts(self, index: Index) -> np.ndarray:
        return self.qzeros.read(index[::-1]).T

    def problems(self) -> Iterator[str]:
        rows, columns = self.shape
        width = _padded(columns // self.group, self.group)
        yield from misshapen(self.qweight, "is", (rows // TILE_ROWS, columns), HALF)
        yield from misshapen(self.stored, "its scales are", (width, rows), *FLOATS)
        yield from misshapen(self.qzeros, "its qzeros are", (width, rows), *FLOATS)
        if columns % TILE_COLUMNS:
            yield f"has {columns} columns, expected a multiple of {TILE_COLUMNS}"


VERSIONS = {"gemm": AwqTensor, "gemv": GemvTensor, "gemv_fast": GemvFastTensor}


def read_awq(it: Unpacking) -> None:
    """Puts a matrix in the place of each qweight and of the scales and zeros beside it."""
    version = str(it.settings.get("version") or "gemm").lower()
    kind = VERSIONS.get(version)
    if kind is None:
        raise UnsupportedModelError(
            f"the weights are AWQ's in the order of {version!r}, which is made for one kind of GPU",
            file=it.file,
            hint=f"use an AWQ checkpoint of version {', '.join(VERSIONS)}",
        )
    bits, group = it.settings.get("bits"), it.settings.get("group_size")
    for stem, qweight in it.ending(".qweight"):
        it.take(qweight.name)
        scales, zeros = it.take(f"{stem}.scales"), it.take(f"{stem}.qzeros")
        if bits != BITS or type(group) is not int or group == 0 or group < -1:
            it.refuse(qweight, f"has bits={bits} and group_size={group}, expected {BITS}, and -1 or more than 0")
        elif scales is None or zeros is None:
            it.refuse(qweight, "lacks scales and qzeros beside it")
        elif len(qweight.shape) != 2:
            it.refuse(qweight, f"is {list(qweight.shape)}, expected two dimensions")
        else:
            tensor = kind(f"{stem}.weight", qweight, scales, zeros, group)
            columns = tensor.shape[1]
            tensor = replace(tensor, group=columns if group == -1 else group)
            problems = list(tensor.problems())
            if columns % tensor.group:
                problems.append(f"has {columns} columns, which groups of {group} do not divide")
            if problems:
                it.refuse(qweight, "; ".join(problems))
            else:
                it.put(tensor.name, tensor)


def _padded(blocks: int, group: int) -> int:
    """Returns the scales that a row of gemv has place for: several whole integers of zeros, if groups are small."""
    words = -(-blocks // NUMBERS)
    together = max(128 // group, 1)
    return -(-words // together) * together * NUMBERS
