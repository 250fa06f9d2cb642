"""Quantized tensors of a checkpoint: codes, with a scale and perhaps an offset for each block of a matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np

from easydel.weights.expressions import Index
from easydel.weights.sources import FLOAT32


@dataclass(frozen=True)
class Form:
    """How a matrix W [..., rows, columns] is made of codes and of numbers for each block of it.

    W[r, c] = (value(code[r, c]) - zero[block]) * scale[block] * factor + offset[block], where the block of r, c is
    (r // block[0], c // block[1]); a block may stand out over the matrix's end. Leading dimensions (experts) are apart.

    Attributes:
        code: the dtype of one code: int8, uint8, int4, uint4, int2, uint2, float8_e4m3fn or float4_e2m1fn.
        block: rows and columns of a block.
        table: the value of each code from 0 on; empty where the code's number is its value.
        shift: what blocks have besides a scale: a "zero" (a code's value that means 0), an "offset", or nothing.
    """

    code: np.dtype
    block: tuple[int, int]
    table: tuple[float, ...] = ()
    shift: Literal["", "zero", "offset"] = ""

    def blocks(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the scales of a matrix of that shape."""
        rows, columns = self.block
        return (*shape[:-2], -(-shape[-2] // rows), -(-shape[-1] // columns))


class CodedTensor(ABC):
    """A TensorSource whose numbers are codes in the file: read as floats, or code by code.

    Every index has a slice with both ends for each dimension. Of scales, zeros and offsets it counts blocks.
    """

    name: str

    @property
    @abstractmethod
    def form(self) -> Form: ...

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype:
        return FLOAT32

    @abstractmethod
    def codes(self, index: Index) -> np.ndarray:
        """Returns codes in the form's dtype."""

    @abstractmethod
    def scales(self, index: Index) -> np.ndarray:
        """Returns the scales of blocks, in the file's dtype or float32."""

    def shifts(self, index: Index) -> np.ndarray:
        """Returns the zeros or offsets of blocks, whichever the form has."""
        raise NotImplementedError

    def factors(self, index: Index) -> np.ndarray | None:
        """Returns a float32 factor of all scales for each leading index; None where there is none."""
        return None

    def read(self, index: Index = ()) -> np.ndarray:
        """Returns a slice as float32. Slices may lack ends, and have positive steps."""
        index = tuple(
            slice(*part.indices(size)) for part, size in zip(_full(index, self.shape), self.shape, strict=True)
        )
        *leading, rows, columns = index
        form = self.form
        values = self.codes(index)
        if form.table:
            values = np.asarray(form.table, np.float32)[values.astype(np.uint8)]
        else:
            values = values.astype(np.float32)
        spread = [_blocks(part, size) for part, size in zip((rows, columns), form.block, strict=True)]
        blocks = (*leading, *(touched for touched, _ in spread))

        def each(found: np.ndarray) -> np.ndarray:
            wide = found.astype(np.float32)
            for dim, (_, places) in zip((-2, -1), spread, strict=True):
                wide = np.take(wide, places, axis=dim)
            return wide

        if form.shift == "zero":
            values -= each(self.shifts(blocks))
        scales = self.scales(blocks).astype(np.float32)
        if (factors := self.factors(tuple(leading))) is not None:
            scales = scales * factors[..., None, None]
        with np.errstate(over="ignore", invalid="ignore"):  # NaN and Inf are found, and told with the tensor's name
            values *= each(scales)
            if form.shift == "offset":
                values += each(self.shifts(blocks))
        return values


def _full(index: Index, shape: tuple[int, ...]) -> Index:
    return (*index, *[slice(None)] * (len(shape) - len(index)))


def _blocks(part: slice, size: int) -> tuple[slice, np.ndarray]:
    """Returns the blocks that a slice touches, and for each of its items the block among those."""
    places = np.arange(part.start, part.stop, part.step) // size
    if not len(places):
        return slice(0, 0), places
    return slice(int(places[0]), int(places[-1]) + 1), places - places[0]
