"""How a matrix is stored by codes: a number of a few bits for each value, and scales over blocks of the matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

FP4 = np.dtype(ml_dtypes.float4_e2m1fn)
# Codes that share a byte; the first of them is in its lowest bits. JAX's own arrays of such dtypes are one byte a
# number in the host's memory, and packed only on devices: bytes are the same everywhere, and in files.
NARROW = {
    np.dtype(ml_dtypes.int4): 4,
    np.dtype(ml_dtypes.uint4): 4,
    FP4: 4,
    np.dtype(ml_dtypes.int2): 2,
    np.dtype(ml_dtypes.uint2): 2,
}
WIDE = tuple(map(np.dtype, (np.int8, np.uint8, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)))
CODES = {dtype.name: dtype for dtype in (*NARROW, *WIDE)}
# Endings of the parameters beside a kernel of codes.
SCALE, OFFSET, FACTOR, ORDER, GAIN = BESIDE = ("_scale", "_offset", "_factor", "_order", "_gain")


@dataclass(frozen=True)
class Form:
    """How a matrix W [..., rows, columns] is made of codes and of numbers for each block of it.

    W[r, c] = (value(code[r, c]) - zero[block]) * scale[block] * factor + offset[block], where the block of r, c is
    (r // block[0], c // block[1]); a block may stand out over the matrix's end. Leading dimensions count the
    matrices (experts). With a `step`, a block's rows lie so far apart (see `row_of`), and blocks fill the matrix.
    Of parameters blocks divide the matrix, and a block of all columns is of one row. What they may have besides, the
    same for all rows: a factor of each whole matrix, the order of its columns (at place c is column order[c] of W, and
    blocks are of places), and a gain, by which each column of W is multiplied.

    Attributes:
        code: the dtype of one code: int8, uint8, int4, uint4, int2, uint2, float8_e4m3fn or float4_e2m1fn.
        block: rows and columns of a block.
        table: the value of each code from 0 on; empty where the code's number is its value.
        shift: what blocks have besides a scale: a "zero" (a code's value that means 0), an "offset", or nothing.
        extra: the endings of what else a parameter has beside it, in the order of `BESIDE`.
        step: rows from one row of a block to its next one.
    """

    code: np.dtype
    block: tuple[int, int]
    table: tuple[float, ...] = ()
    shift: Literal["", "zero", "offset"] = ""
    extra: tuple[str, ...] = ()
    step: int = 1

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return NARROW.get(self.code, 8)

    @property
    def per_byte(self) -> int:
        """Codes in one byte: neighbours in a row."""
        return 8 // self.bits

    @property
    def held(self) -> np.dtype:
        """The dtype of an array of codes: bytes, if several of them share one."""
        return self.code if self.per_byte == 1 else np.dtype(np.uint8)

    def blocks(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the scales of a matrix of that shape."""
        rows, columns = self.block
        return (*shape[:-2], -(-shape[-2] // rows), -(-shape[-1] // columns))

    def row_of(self, row: Any) -> Any:
        """Returns the row of blocks of a row of the matrix."""
        height = self.block[0]
        return row // height if self.step == 1 else row // (height * self.step) * self.step + row % self.step

    def runs(self, rows: int) -> int:
        """Returns in how many runs of rows, each with blocks of its own, so many rows can be cut."""
        return rows // (self.block[0] * self.step)

    def by_blocks(self, shape: tuple[int, ...], width: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the shape of a matrix cut into blocks of so many columns, and the shape of their numbers."""
        *lead, rows, columns = shape
        steps = (self.step,) if self.step > 1 else ()
        outer, across = self.runs(rows), columns // width
        return (*lead, outer, self.block[0], *steps, across, width), (*lead, outer, 1, *steps, across, 1)

    def codes_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the array of codes of a matrix of that shape."""
        return (*shape[:-1], shape[-1] // self.per_byte)

    def scales_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the parameter of scales: that of `blocks`, or [..., rows] of a scale for each row."""
        return shape[:-1] if self.is_by_rows(shape[-1]) else self.blocks(shape)

    def parts(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the arrays that make a matrix of that shape, by the endings of their names."""
        shift = {OFFSET: self.scales_shape(shape)} if self.shift else {}
        extra = {end: shape[:-2] if end == FACTOR else (*shape[:-2], shape[-1]) for end in self.extra}
        return {"": self.codes_shape(shape), SCALE: self.scales_shape(shape), **shift, **extra}

    def is_by_rows(self, columns: int) -> bool:
        """True if each row has one scale."""
        return self.block == (1, columns)

    def to_json(self) -> dict[str, Any]:
        """Returns the form as JSON has it."""
        found = {"code": self.code.name, "block": list(self.block), "table": list(self.table), "shift": self.shift}
        found |= {"extra": list(self.extra)} if self.extra else {}
        return found | ({"step": self.step} if self.step > 1 else {})

    @classmethod
    def from_json(cls, found: Any) -> Form:
        """Returns the form that `to_json` wrote. Raises ValueError, KeyError or TypeError if it is none."""
        code, (rows, columns), table = CODES[found["code"]], found["block"], tuple(map(float, found["table"]))
        step = found.get("step", 1)
        if not all(isinstance(size, int) and size > 0 for size in (rows, columns, step)):
            raise ValueError(f"a block of {rows!r} x {columns!r}, rows {step!r} apart")
        if found["shift"] not in ("", "zero", "offset") or len(table) not in (0, 1 << NARROW.get(code, 8)):
            raise ValueError(f"shift {found['shift']!r}, a table of {len(table)}")
        extra = tuple(found.get("extra", ()))
        if extra != tuple(end for end in (FACTOR, ORDER, GAIN) if end in extra):
            raise ValueError(f"extra {extra!r}")
        return cls(code, (rows, columns), table, found["shift"], extra, step)


def by_rows(code: np.dtype, columns: int) -> Form:
    """Returns the form with one scale for each row, and nothing else: int8 as `load_in_8bit` makes it."""
    return Form(code, (1, columns))


def packed(codes: np.ndarray, form: Form) -> np.ndarray:
    """Returns codes [..., columns], in the form's dtype, as bytes [..., columns / per_byte]; wide ones as they are."""
    if form.per_byte == 1:
        return codes
    bytes_ = np.ascontiguousarray(codes).view(np.uint8) & np.uint8((1 << form.bits) - 1)
    for bits in (form.bits, 2 * form.bits)[: form.per_byte // 2]:
        pairs = bytes_.view("<u2")
        bytes_ = (pairs | pairs >> (8 - bits)).astype(np.uint8)
    return bytes_


def unpacked(held: np.ndarray, form: Form) -> np.ndarray:
    """Returns the codes of bytes that `packed` made, in the form's dtype."""
    if form.per_byte == 1:
        return held
    places = [held << (8 - form.bits * (place + 1)) for place in range(form.per_byte)]
    codes = np.stack(places, axis=-1).reshape(*held.shape[:-1], -1)
    if form.code.kind != "V" and np.issubdtype(form.code, np.signedinteger):
        return (codes.view(np.int8) >> (8 - form.bits)).astype(form.code)
    return (codes >> (8 - form.bits)).view(form.code)


def floats_of(arrays: Mapping[str, np.ndarray], form: Form) -> np.ndarray:
    """Returns the float32 matrix [..., rows, columns] of a parameter's arrays, by the endings of their names."""
    codes, scales, shifts = unpacked(arrays[""], form), arrays[SCALE], arrays.get(OFFSET)
    values = np.asarray(form.table, np.float32)[codes.view(np.uint8)] if form.table else codes.astype(np.float32)
    in_blocks, of_blocks = form.by_blocks(codes.shape, form.block[1])
    blocks = values.reshape(in_blocks)

    def spread(numbers: np.ndarray) -> np.ndarray:
        return numbers.astype(np.float32).reshape(of_blocks)

    if shifts is not None and form.shift == "zero":
        blocks -= spread(shifts)
    if FACTOR in arrays:
        factor = arrays[FACTOR].astype(np.float32)
        scales = scales.astype(np.float32) * factor.reshape(*factor.shape, *[1] * (scales.ndim - factor.ndim))
    blocks *= spread(scales)
    if shifts is not None and form.shift == "offset":
        blocks += spread(shifts)
    floats = blocks.reshape(codes.shape)
    if ORDER in arrays:
        floats = np.take_along_axis(floats, np.argsort(arrays[ORDER], axis=-1)[..., None, :], axis=-1)
    return floats * arrays[GAIN].astype(np.float32)[..., None, :] if GAIN in arrays else floats
