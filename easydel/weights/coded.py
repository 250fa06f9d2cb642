"""Quantized tensors of a checkpoint: codes, with a scale and perhaps an offset for each block of a matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache, cached_property
from pathlib import Path
from typing import ClassVar, Literal

import ml_dtypes
import numpy as np

from easydel.forms import FACTOR, GAIN, OFFSET, ORDER, SCALE, Form, packed
from easydel.weights.expressions import Index, with_ends
from easydel.weights.sources import FLOAT32, TensorSource

INTEGERS = [np.dtype(kind) for kind in (np.int8, np.uint8)]
INTEGERS += [np.dtype(getattr(ml_dtypes, kind)) for kind in ("int4", "uint4", "int2", "uint2")]
PAIRED = 1 << 16  # more numbers are looked up two at a time, in a table that takes as long to make
Kind = Literal["codes", "scales", "shifts", "factors", "order", "gains"]
# what the arrays of a parameter are, by the endings of their names
KINDS: dict[str, Kind] = {
    "": "codes",
    SCALE: "scales",
    OFFSET: "shifts",
    FACTOR: "factors",
    ORDER: "order",
    GAIN: "gains",
}


class OnlyFloats:
    """A TensorSource whose numbers are codes in the file, and which is read as floats alone, for a `reason`."""

    reason: ClassVar[str]


class CodedTensor(ABC):
    """A TensorSource whose numbers are codes in the file: read as floats, or code by code.

    Every index has a slice with both ends for each dimension. Of scales, zeros and offsets it counts blocks.
    """

    name: str
    form: Form

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]: ...

    @property
    @abstractmethod
    def file(self) -> Path: ...

    @property
    @abstractmethod
    def nbytes(self) -> int: ...

    @property
    def dtype(self) -> np.dtype:
        return FLOAT32

    @property
    def scale_dtype(self) -> np.dtype:
        """The dtype that `scales` have, if no factor multiplies them."""
        return FLOAT32

    @property
    def shift_dtype(self) -> np.dtype:
        """The dtype that `shifts` have."""
        return FLOAT32

    @property
    def has_factors(self) -> bool:
        """True if `factors` multiply the scales."""
        return type(self).factors is not CodedTensor.factors

    @property
    def by_columns(self) -> bool:
        """True if rows of the matrix are columns of the file, for codes and for numbers of blocks."""
        return False

    @property
    def scattered(self) -> bool:
        """True if any few rows, and any few columns, of the matrix lie all over the file."""
        return False

    def at_hand(self, kind: Kind | None = None) -> CodedTensor:
        """Returns the tensor with its arrays in memory, if they are on another machine: those for `kind`, or all."""
        return self

    def plain(self, kind: Kind) -> TensorSource | None:
        """Returns the file's own tensor, if it is the array of codes (`packed`), scales or shifts as it stands.

        It is then read, or mapped, in the place of that array.
        """
        return None

    def packed(self, index: Index, *, turned: bool = False) -> np.ndarray:
        """Returns codes as they are held: of narrow ones, several in a byte. `index` counts codes.

        `turned` returns those of the transposed matrix, [..., columns, rows].
        """
        codes = self.codes(index)
        return packed(codes.swapaxes(-1, -2) if turned else codes, self.form)

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

    def groups(self, columns: slice) -> np.ndarray | None:
        """Returns the block, counted along a row, of each of these columns; None where blocks lie in order."""
        return None

    @cached_property
    def arranged(self) -> np.ndarray | None:
        """All columns (int32), put so that those of a block stand together; None where they lie so. Read once."""
        columns = self.shape[-1]
        groups = self.groups(slice(0, columns, 1))
        if groups is None or np.array_equal(groups, np.arange(columns) // self.form.block[1]):
            return None
        return np.argsort(groups, kind="stable").astype(np.int32)

    def extra(self) -> tuple[str, ...]:
        """Returns the endings of what a parameter of this tensor has besides codes and numbers of blocks."""
        columns = slice(0, self.shape[-1], 1)
        has = {FACTOR: self.has_factors, ORDER: self.arranged is not None, GAIN: self.gains(columns) is not None}
        return tuple(end for end, there in has.items() if there)

    def gains(self, columns: slice) -> np.ndarray | None:
        """Returns a float32 factor of each of these columns; None where there is none."""
        return None

    def values(self, index: Index) -> np.ndarray:
        """Returns the values of codes as float32, in memory of its own."""
        return _values(self.codes(index), self.form.table)

    def read(self, index: Index = ()) -> np.ndarray:
        """Returns a slice as float32. Slices may lack ends, and have positive steps."""
        *leading, rows, columns = with_ends(index, self.shape)
        form, groups = self.form, self.groups(columns)
        lines = form.row_of(np.arange(rows.start, rows.stop, rows.step)) if form.step > 1 else None
        blocks = (_blocks(rows, form.block[0], lines), _blocks(columns, form.block[1], groups))
        touched = (*leading, *blocks)

        def each(found: np.ndarray) -> np.ndarray:
            """Returns the numbers of blocks for each number of the slice, or such that they broadcast to it."""
            tall = _values(found)
            if lines is not None:
                wide = np.take(tall, lines - blocks[0].start, axis=-2)
            else:
                wide = _repeated(tall, rows, form.block[0], -2)
            if groups is not None:
                return np.take(wide, groups - blocks[1].start, axis=-1)
            return _repeated(wide, columns, form.block[1], -1) if numbers is values else wide[..., None]

        values = self.values((*leading, rows, columns))
        # whole blocks have a dimension of their own, in which the numbers of blocks broadcast
        numbers = values if groups is not None else _by_blocks(values, columns, form.block[1])
        if form.shift == "zero":
            numbers -= each(self.shifts(touched))
        scales = _values(self.scales(touched))
        if (factors := self.factors(tuple(leading))) is not None:
            scales = scales * factors[..., None, None]
        with np.errstate(over="ignore", invalid="ignore"):  # NaN and Inf are found, and told with the tensor's name
            numbers *= each(scales)
            if form.shift == "offset":
                numbers += each(self.shifts(touched))
            if (gains := self.gains(columns)) is not None:
                values *= gains
        return values


def _blocks(part: slice, size: int, groups: np.ndarray | None = None) -> slice:
    """Returns the blocks that a slice touches; `groups` are those of its items, where they are not in order."""
    if not (count := len(range(part.start, part.stop, part.step))):
        return slice(0, 0)
    if groups is not None:
        return slice(int(groups.min()), int(groups.max()) + 1)
    return slice(part.start // size, (part.start + (count - 1) * part.step) // size + 1)


def _by_blocks(values: np.ndarray, columns: slice, size: int) -> np.ndarray:
    """Returns a view [..., blocks, size] of the values of whole blocks, and the values themselves of others."""
    whole = columns.step == 1 and columns.start % size == 0 == (columns.stop - columns.start) % size
    if not (whole and values.size and values.flags.c_contiguous):
        return values
    return values.reshape(*values.shape[:-1], values.shape[-1] // size, size)


def _repeated(found: np.ndarray, part: slice, size: int, dim: int) -> np.ndarray:
    """Returns the numbers of the blocks that a slice touches for each of its items; a single one broadcasts."""
    if found.shape[dim] <= 1:
        return found
    first = part.start // size * size
    picked = slice(part.start - first, part.stop - first, part.step)
    wide = np.repeat(found, size, axis=dim) if size > 1 else found
    return wide[..., picked] if dim == -1 else wide[..., picked, :]


def _values(codes: np.ndarray, table: tuple[float, ...] = ()) -> np.ndarray:
    """Returns the values of codes (or other numbers) as float32."""
    if table:
        return np.asarray(table, np.float32).take(codes.astype(np.uint8))
    if codes.dtype in INTEGERS or codes.dtype.itemsize > 1:
        return codes.astype(np.float32)
    if codes.size > PAIRED and codes.flags.c_contiguous and not codes.shape[-1] % 2:
        return _float_pairs(codes.dtype).take(codes.view("<u2")).view(np.float32)
    return _floats(codes.dtype).take(codes.view(np.uint8))


@cache
def _floats(dtype: np.dtype) -> np.ndarray:
    """Returns the value of each byte as a number of that dtype: looking it up is faster than converting."""
    return np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)


@cache
def _float_pairs(dtype: np.dtype) -> np.ndarray:
    """Returns the values of each two bytes, as float32 side by side in 8 bytes."""
    return _floats(dtype).take(np.arange(256 * 256, dtype="<u2").view(np.uint8)).view(np.uint64)
