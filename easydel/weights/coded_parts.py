"""The arrays of a quantized tensor, each as a tensor of its own: codes, scales, and what else it has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path

import ml_dtypes
import numpy as np

from easydel.forms import packed
from easydel.weights.coded import CodedTensor, Kind
from easydel.weights.expressions import Index, with_ends
from easydel.weights.sources import FLOAT32

Block = tuple[int, int]
Shape = tuple[int, ...]
BYTES = (np.int8, np.uint8)
FOR_ALL_ROWS: dict[Kind, np.dtype] = {"factors": FLOAT32, "order": np.dtype(np.int32), "gains": FLOAT32}


def dtype_of(tensor: CodedTensor, kind: Kind) -> np.dtype:
    """Returns the dtype of an array of the tensor as it is stored: no integers of less than a byte."""
    if kind in FOR_ALL_ROWS:
        return FOR_ALL_ROWS[kind]
    dtype = tensor.scale_dtype if kind == "scales" else tensor.shift_dtype
    if dtype.name.startswith(("int", "uint")):
        small = ml_dtypes.iinfo(dtype)
        return next((np.dtype(wide) for wide in BYTES if _holds(wide, small.min, small.max)), FLOAT32)
    return dtype if dtype.itemsize <= FLOAT32.itemsize else FLOAT32


def _holds(wide: type, least: int, most: int) -> bool:
    return np.iinfo(wide).min <= least and most <= np.iinfo(wide).max


@dataclass(frozen=True, eq=False)
class Part:
    """The codes, scales or shifts of a tensor as a tensor: one number for each `unit` (rows, columns) of the tensor.

    Scales and shifts are repeated for units that are parts of a block. `turned` packs codes along rows. If `ordered`,
    codes are in the order of their blocks. If `multiplied`, scales have the tensor's factor in them.
    """

    of: CodedTensor
    kind: Kind
    unit: Block
    turned: bool = False
    ordered: bool = False
    multiplied: bool = False

    @property
    def name(self) -> str:
        unit = "" if self.kind == "codes" else f" of {self.unit[0]} x {self.unit[1]}"
        return f"{self.of.name} ({self.kind}{unit}{', turned' if self.turned else ''})"

    @property
    def file(self) -> Path:
        return self.of.file

    @property
    def shape(self) -> Shape:
        *lead, rows, columns = self.of.shape
        if self.kind in FOR_ALL_ROWS:
            return tuple(lead) if self.kind == "factors" else (*lead, columns)
        return (*lead, rows // self.unit[0], columns // self.unit[1])

    @property
    def is_plain(self) -> bool:
        """True if it is the tensor's own array: nothing is repeated, multiplied or packed in another direction."""
        if self.kind == "codes":
            return not (self.turned and self.of.form.per_byte > 1) and self._order is None
        return self.kind in FOR_ALL_ROWS or (self.unit == self.of.form.block and not self._multiplies)

    @property
    def by_columns(self) -> bool:
        """True if rows are columns of the file. Not where columns have an order: each few of them lie all over it."""
        return self.of.by_columns and self.kind not in FOR_ALL_ROWS and self._order is None

    @property
    def scattered(self) -> bool:
        """True if any few rows, and any few columns, lie all over the file."""
        return self.of.scattered and self.kind not in FOR_ALL_ROWS

    def at_hand(self) -> Part:
        """Returns the same part in memory, if it is on another machine."""
        return replace(self, of=self.of.at_hand(self.kind))

    @property
    def dtype(self) -> np.dtype:
        if self.kind == "codes":
            return self.of.form.held
        return FLOAT32 if self._multiplies else dtype_of(self.of, self.kind)

    @cached_property
    def _order(self) -> np.ndarray | None:
        return self.of.arranged if self.ordered else None

    @property
    def _multiplies(self) -> bool:
        return self.kind == "scales" and self.multiplied and self.of.has_factors

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def read(self, index: Index = ()) -> np.ndarray:
        index = with_ends(index, self.shape)
        if self.kind in FOR_ALL_ROWS:
            return self._for_all_rows(index)
        return self._codes(index) if self.kind == "codes" else self._numbers(index)

    def _for_all_rows(self, index: Index) -> np.ndarray:
        """Returns factors, order or gains; if the tensor has none but others of a stack do, those that do nothing."""
        if self.kind == "factors":
            found = self.of.factors(index)
            return np.ones(self.shape, self.dtype)[index] if found is None else found
        columns, size = index[-1], self.shape[-1]
        if self.kind == "order":
            found = (np.arange(size, dtype=self.dtype) if self._order is None else self._order)[columns]
        else:
            gains = self.of.gains(columns)
            found = np.ones(size, self.dtype)[columns] if gains is None else gains
        return np.broadcast_to(found, (*self.shape[:-1], len(found)))[index[:-1]]

    def _codes(self, index: Index) -> np.ndarray:
        *lead, rows, columns = index
        if self.ordered and (order := self._order) is not None:
            taken = order[_widened(columns, self.unit[1])]
            first = int(taken.min(initial=order.size - 1))
            near = self.of.codes((*lead, rows, slice(first, int(taken.max(initial=first)) + 1, 1)))
            return packed(np.take(near, taken - first, axis=-1), self.of.form)
        if not self.turned:
            return self.of.packed((*lead, rows, _widened(columns, self.unit[1])))
        return self.of.packed((*lead, _widened(rows, self.unit[0]), columns), turned=True).swapaxes(-1, -2)

    def _numbers(self, index: Index) -> np.ndarray:
        *lead, rows, columns = index
        form, (height, width) = self.of.form, self.unit
        numbers, across = (np.arange(part.start, part.stop, part.step or 1) for part in (rows, columns))
        first_rows = numbers // form.step * (height * form.step) + numbers % form.step
        spread = [_touched(form.row_of(first_rows)), _touched(across * width // form.block[1])]
        blocks = (*lead, *(touched for touched, _ in spread))
        found = self.of.scales(blocks) if self.kind == "scales" else self.of.shifts(blocks)
        for dim, (_, places) in zip((-2, -1), spread, strict=True):
            if not np.array_equal(places, np.arange(found.shape[dim])):
                found = np.take(found, places, axis=dim)
        if self._multiplies and (factors := self.of.factors(tuple(lead))) is not None:
            found = found.astype(np.float32) * factors[..., None, None]
        return found.astype(self.dtype)


def _widened(part: slice, size: int) -> slice:
    assert (part.step or 1) == 1, part
    return slice(part.start * size, part.stop * size)


def _touched(blocks: np.ndarray) -> tuple[slice, np.ndarray]:
    """Returns a slice that has all these blocks, and the place of each in it."""
    if not len(blocks):
        return slice(0, 0), blocks
    first = int(blocks.min())
    return slice(first, int(blocks.max()) + 1), blocks - first
