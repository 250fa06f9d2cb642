"""AWQ (Lin et al. 2023, arXiv:2306.00978) as AutoAWQ writes it: 4 bits in the order that one of its kernels wants.

For W [out, in] in groups of g columns, with W = (q - zero) * scale:
gemm: qweight int32 [in, out / 8], qzeros int32 [in / g, out / 8], scales [in / g, out].
  Eight rows of W share an integer.
gemv: qweight int32 [out, in / 8], qzeros int32 [out, width], scales [out, 8 * width]; the width has padding.
gemv_fast: qweight int16 [out / 4, in], scales and qzeros [8 * width, out], where a qzero is -zero * scale as a float.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from easydel.checkpoint import Tensor
from easydel.config import shown
from easydel.errors import UnsupportedModelError
from easydel.weights.coded import Form
from easydel.weights.expressions import Index
from easydel.weights.formats.checks import BYTE, FLOATS, WORD, is_group, misshapen
from easydel.weights.formats.matrix import Matrix
from easydel.weights.formats.parts import Part, Stream, integers, swapped, unpacked_bits
from easydel.weights.formats.unpacking import Unpacking

BITS = 4
CODE = integers(BITS, signed=False)
NUMBERS = 8  # in an integer of 32 bits
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # in its integer of gemm, of each of 8 rows of W
TILE_ROWS, TILE_COLUMNS = 4, 64  # of W that gemv_fast stores together
# the columns of W within 32, in the order in which gemv_fast stores them
FAST = np.arange(32).reshape(4, 4, 2).transpose(1, 0, 2).reshape(4, 4, 2).transpose(0, 2, 1).ravel()
HALF = np.dtype(np.int16)


def read_awq(it: Unpacking) -> None:
    """Puts a matrix in the place of each qweight and of the scales and zeros beside it."""
    # gptqmodel, which writes AWQ as well, has another key for it
    stated = it.settings.get("version") or it.settings.get("checkpoint_format") or it.settings.get("format") or "gemm"
    kind = VERSIONS.get(str(stated).lower())
    if kind is None:
        raise UnsupportedModelError(
            f"the weights are AWQ's in the version {shown(stated)}, whose order of numbers is not known here",
            file=it.config,
            hint=f"use an AWQ checkpoint of version {', '.join(VERSIONS)}",
        )
    bits, group = it.settings.get("bits"), it.settings.get("group_size")
    for stem, qweight in it.ending(".qweight"):
        it.take(qweight.name)
        scales, zeros = it.take(f"{stem}.scales"), it.take(f"{stem}.qzeros")
        if bits != BITS or not is_group(group):
            it.refuse(qweight, f"has bits={bits!r} and group_size={group!r}, expected {BITS}, and -1 or more than 0")
        elif scales is None or zeros is None:
            it.refuse(qweight, "lacks scales and qzeros beside it")
        elif len(qweight.shape) != 2:
            it.refuse(qweight, f"is {list(qweight.shape)}, expected two dimensions")
        elif problems := list((stored := kind(qweight, scales, zeros, group)).problems()):
            it.refuse(qweight, "; ".join(problems))
        else:
            it.put(f"{stem}.weight", stored.matrix(f"{stem}.weight"))


@dataclass(frozen=True)
class Gemm:
    """The tensors of one matrix in the layout of gemm."""

    qweight: Tensor
    scales: Tensor
    qzeros: Tensor
    group_size: int
    shift: ClassVar[Literal["zero", "offset"]] = "zero"

    @property
    def shape(self) -> tuple[int, int]:
        return self.qweight.shape[1] * NUMBERS, self.qweight.shape[0]

    @property
    def group(self) -> int:
        return max(self.shape[1], 1) if self.group_size == -1 else self.group_size

    @property
    def blocks(self) -> int:
        """The number of groups in a row."""
        return self.shape[1] // self.group

    def matrix(self, name: str) -> Matrix:
        """Returns the matrix [out, in]."""
        form = Form(CODE, (1, self.group), shift=self.shift)
        return Matrix(name, form, (self.qweight, self.scales, self.qzeros), *self.parts())

    def parts(self) -> tuple[Part, Part, Part]:
        """Returns codes, scales, and zeros or offsets."""
        return Eights(self.qweight, CODE), swapped(self.scales), Eights(self.qzeros, BYTE)

    def problems(self) -> Iterator[str]:
        """Yields what does not fit."""
        _, columns = self.shape
        if columns % self.group:
            yield f"has {columns} columns, which groups of {self.group} do not divide"
        yield from self.misshapen()

    def misshapen(self) -> Iterator[str]:
        """Yields tensors of other shapes or dtypes than the layout's."""
        (rows, columns), words = self.shape, self.shape[0] // NUMBERS
        yield from misshapen(self.qweight, "is", (columns, words), WORD)
        yield from misshapen(self.scales, "its scales are", (self.blocks, rows), *FLOATS)
        yield from misshapen(self.qzeros, "its qzeros are", (self.blocks, words), WORD)


class Gemv(Gemm):
    """The tensors of one matrix in the layout of gemv."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.qweight.shape[0], self.qweight.shape[1] * NUMBERS

    @property
    def width(self) -> int:
        """The scales that a row has place for: several whole integers of zeros, if groups are small."""
        unit = NUMBERS * max(128 // self.group, 1)
        return -(-self.blocks // unit) * unit

    def parts(self) -> tuple[Part, Part, Part]:
        rows, columns = self.shape
        code = Stream(self.qweight, BITS, 1, columns, CODE)
        return code, Leading(self.scales, (rows, self.blocks)), Stream(self.qzeros, BITS, 1, self.blocks, BYTE)

    def misshapen(self) -> Iterator[str]:
        rows, columns = self.shape
        yield from misshapen(self.qweight, "is", (rows, columns // NUMBERS), WORD)
        yield from misshapen(self.scales, "its scales are", (rows, self.width), *FLOATS)
        yield from misshapen(self.qzeros, "its qzeros are", (rows, self.width // NUMBERS), WORD)


class GemvFast(Gemv):
    """The tensors of one matrix in the layout of gemv_fast."""

    shift = "offset"

    @property
    def shape(self) -> tuple[int, int]:
        return self.qweight.shape[0] * TILE_ROWS, self.qweight.shape[1]

    def parts(self) -> tuple[Part, Part, Part]:
        rows, _ = self.shape
        scale, offset = (swapped(Leading(part, (self.blocks, rows))) for part in (self.scales, self.qzeros))
        return Tiles(self.qweight), scale, offset

    def misshapen(self) -> Iterator[str]:
        rows, columns = self.shape
        if columns % TILE_COLUMNS:
            yield f"has {columns} columns, expected a multiple of {TILE_COLUMNS}"
        yield from misshapen(self.qweight, "is", (rows // TILE_ROWS, columns), HALF)
        yield from misshapen(self.scales, "its scales are", (self.width, rows), *FLOATS)
        yield from misshapen(self.qzeros, "its qzeros are", (self.width, rows), *FLOATS)


VERSIONS = {"gemm": Gemm, "gemv": Gemv, "gemv_fast": GemvFast}


@dataclass(frozen=True, eq=False)
class Eights:
    """The transpose of the numbers in an array of gemm's integers, which each hold eight rows of W."""

    packed: Tensor
    dtype: np.dtype
    by_columns: ClassVar[bool] = True

    @property
    def shape(self) -> tuple[int, ...]:
        return self.packed.shape[1] * NUMBERS, self.packed.shape[0]

    def read(self, index: Index = ()) -> np.ndarray:
        rows, columns = index
        first, last = rows.start // NUMBERS, -(-rows.stop // NUMBERS)
        words = np.ascontiguousarray(self.packed.read((columns, slice(first, last))).T)
        halves = words.view(BYTE).reshape(*words.shape, WORD.itemsize)
        numbers = np.empty((words.shape[0], NUMBERS, words.shape[1]), BYTE)
        for row, place in enumerate(PLACES):
            byte = halves[..., place // 2]
            numbers[:, row] = byte >> 4 if place % 2 else byte & 15
        whole, base = numbers.reshape(words.shape[0] * NUMBERS, words.shape[1]), first * NUMBERS
        return whole[rows.start - base : rows.stop - base : rows.step].view(self.dtype)


@dataclass(frozen=True, eq=False)
class Leading:
    """The first numbers of each dimension of an array."""

    of: Part
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.of.dtype

    def read(self, index: Index = ()) -> np.ndarray:
        return self.of.read(index)


@dataclass(frozen=True, eq=False)
class Tiles:
    """The codes in `qweight` of gemv_fast: the numbers of a tile, row after row, in integers of 16 bits."""

    qweight: Tensor
    dtype: np.dtype = CODE

    @property
    def shape(self) -> tuple[int, ...]:
        return self.qweight.shape[0] * TILE_ROWS, self.qweight.shape[1]

    def read(self, index: Index = ()) -> np.ndarray:
        rows, columns = index
        above, left = rows.start // TILE_ROWS, columns.start // TILE_COLUMNS
        down, across = -(-rows.stop // TILE_ROWS) - above, -(-columns.stop // TILE_COLUMNS) - left
        top, first = above * TILE_ROWS, left * TILE_COLUMNS
        packed = self.qweight.read((slice(above, above + down), slice(first, first + across * TILE_COLUMNS)))
        numbers = unpacked_bits(
            np.ascontiguousarray(packed).view(BYTE), BITS, across * TILE_ROWS * TILE_COLUMNS
        ).reshape(down, across, TILE_ROWS, TILE_COLUMNS // len(FAST), len(FAST))
        whole = numbers[..., np.argsort(FAST)].swapaxes(1, 2).reshape(down * TILE_ROWS, across * TILE_COLUMNS)
        picked = (
            slice(part.start - base, part.stop - base, part.step) for part, base in ((rows, top), (columns, first))
        )
        return whole[tuple(picked)].view(CODE)
