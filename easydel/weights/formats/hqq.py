"""HQQ (Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models") as hqq writes it.

The numbers of W [out, in], row after row, fill a matrix in which each row (axis 1) or each column (axis 0) is a group
with a scale and a zero: W = (q - zero) * scale. Rows of that matrix that lie far apart share an integer of W_q: of N
rows at 4 bits, row r is in the high half of bytes r, and row r + N / 2 in the low one. Small tensors say the rest.

With axis 0, if N divides `out`, each row is out / N rows of W: a group is N numbers of one column, that far apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import ClassVar

import numpy as np

from easydel.checkpoint import Tensor
from easydel.checkpoint.tensor import row_major
from easydel.weights.coded import Form, OnlyFloats
from easydel.weights.expressions import Index, with_ends
from easydel.weights.formats.checks import BYTE, FLOATS, WORD, misshapen
from easydel.weights.formats.matrix import Matrix
from easydel.weights.formats.parts import integers
from easydel.weights.formats.unpacking import Unpacking
from easydel.weights.sources import FLOAT32, TensorSource

FIELDS = {1: 8, 2: 4, 3: 10, 4: 2, 5: 1, 6: 1, 8: 1}  # bits -> numbers in an integer: int32 for 3 bits, else uint8
CODES = ".W_q"
SAID = ("nbits", "axis", "shape", "quant_scale", "quant_zero")
REPEATED = (
    "channel_wise",
    "compute_dtype",
    "encoded_state_dict",
    "group_size",
    "offload_meta",
    "optimize",
    "packing",
    "round_zero",
    "stores_quant_config",
    "unpack_view_dtype",
    "view_as_float",
)


def read_hqq(it: Unpacking) -> None:
    """Puts a matrix in the place of each W_q and of the tensors beside it."""
    for stem, packed in it.ending(CODES):
        it.take(packed.name)
        scale, zero = it.take(f"{stem}.scale"), it.take(f"{stem}.zero")
        said = {leaf: it.take(f"{stem}.{leaf}") for leaf in SAID}
        for leaf in REPEATED:
            it.take(f"{stem}.{leaf}")
        values = {leaf: _ints(tensor) for leaf, tensor in said.items()}
        if scale is None or zero is None or any(said[leaf] is None for leaf in ("nbits", "axis", "shape")):
            what = "with scale and zero quantized, too" if values["quant_scale"] or values["quant_zero"] else ""
            it.refuse(packed, f"lacks scale, zero, nbits, axis and shape beside it {what}".rstrip())
        elif problem := _problem(values):
            it.refuse(packed, problem)
        else:
            (bits,), (axis,), (outputs, inputs) = values["nbits"], values["axis"], values["shape"]
            shape, numbers = (outputs, inputs), _integers(packed, bits)
            if problems := list(_misfit(numbers, scale, zero, bits, axis, shape)):
                it.refuse(packed, "; ".join(problems))
            else:
                groups = Groups(numbers, bits, prod(shape) // numbers.shape[1])
                it.put(f"{stem}.weight", _matrix(f"{stem}.weight", groups, scale, zero, axis, shape))


def _ints(tensor: Tensor | None) -> tuple[int, ...]:
    """Returns the numbers of one of the small tensors; of none, and of one that is not small, no number."""
    if tensor is None or prod(tensor.shape) > 2 or tensor.dtype.kind not in "iuf":
        return ()
    found = tensor.read().reshape(-1).tolist()
    return tuple(map(math.ceil, found)) if np.isfinite(found).all() else ()  # 1.58 bits are stored as 2


def _problem(values: Mapping[str, tuple[int, ...]]) -> str | None:
    if any(values["quant_scale"]) or any(values["quant_zero"]):
        return "has scales or zeros that are quantized, too, which is not implemented"
    bits, axis, shape = (values[leaf] for leaf in ("nbits", "axis", "shape"))
    if len(bits) != 1 or bits[0] not in FIELDS or axis not in ((0,), (1,)) or len(shape) != 2 or min(shape) < 1:
        found = f"nbits={list(bits)}, axis={list(axis)} and shape={list(shape)}"
        return f"has {found}, expected one of {list(FIELDS)}, 0 or 1, and two sizes"
    return None


def _integers(packed: Tensor, bits: int) -> Tensor:
    """Returns W_q as the integers that it is made of: with view_as_float its dtype is that of activations."""
    dtype = WORD if bits == 3 else BYTE
    if packed.dtype == dtype or packed.dtype not in FLOATS or len(packed.shape) != 2:
        return packed
    rows, columns = packed.shape
    width = columns * packed.dtype.itemsize // dtype.itemsize
    return replace(packed, dtype=dtype, shape=(rows, width), strides=(width * dtype.itemsize, dtype.itemsize))


def _misfit(packed: Tensor, scale: Tensor, zero: Tensor, bits: int, axis: int, shape: tuple[int, int]) -> Iterator[str]:
    count = prod(shape)
    if len(packed.shape) != 2 or not packed.shape[1] or count % packed.shape[1]:
        yield f"is {list(packed.shape)}, whose rows do not divide the {count} numbers of {list(shape)}"
        return
    rows, width = count // packed.shape[1], packed.shape[1]
    yield from misshapen(packed, "is", (-(-rows // FIELDS[bits]), width), WORD if bits == 3 else BYTE)
    of_groups = (rows, 1) if axis == 1 else (1, width)
    yield from misshapen(scale, "its scale is", of_groups, *FLOATS)
    yield from misshapen(zero, "its zero is", of_groups, *FLOATS)


def _matrix(name: str, groups: Groups, scale: Tensor, zero: Tensor, axis: int, shape: tuple[int, int]) -> TensorSource:
    stored = groups.packed, scale, zero
    if axis == 1:
        code = Codes(groups, shape)
        each, zeros = (OfBlocks(part, shape, groups.width) for part in (scale, zero))
        return Matrix(name, Form(code.dtype, (1, each.together), shift="zero"), stored, code, each, zeros)
    if groups.width % shape[1]:
        return Columns(name, groups, scale, zero, shape)
    code = RowsApart(groups, shape)
    form = Form(code.dtype, (groups.count, 1), shift="zero", step=code.step)
    return Matrix(name, form, stored, code, *(_with_rows(part, code.step) for part in (scale, zero)))


def _with_rows(stored: Tensor, rows: int) -> Tensor:
    """Returns a matrix of one row as one of `rows` rows."""
    shape = (rows, stored.shape[1] // rows)
    return replace(stored, shape=shape, strides=row_major(shape, stored.dtype.itemsize))


@dataclass(frozen=True)
class Groups:
    """The matrix of groups, of `count` rows: `packed` holds several of them in each of its own."""

    packed: Tensor
    bits: int
    count: int

    @property
    def width(self) -> int:
        return self.packed.shape[1]

    @property
    def code(self) -> np.dtype:
        return integers(self.bits, signed=False)

    def rows(self, rows: np.ndarray, parts: int = 1, columns: Index = ()) -> np.ndarray:
        """Returns some rows' numbers, as uint8 [*rows.shape, width].

        If each row is cut into several `parts`, `rows` and `columns` count those of the parts.
        """
        together, fields = self.packed.shape[0], FIELDS[self.bits]
        found = self.packed.read().reshape(together, parts, -1)  # a view of the mapped file: only these are touched
        whole = rows // parts
        found = found[:, :, *columns][whole % together, rows % parts]
        shifts = (self.bits * (fields - 1 - whole // together)).astype(found.dtype)
        return (found >> shifts[..., None] & (1 << self.bits) - 1).astype(BYTE)

    def run(self, index: Index, columns: int, read: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Returns a slice of the matrix [out, columns] out of whatever `read` gives for rows of this one."""
        taken = np.arange(index[0].start, index[0].stop, index[0].step)
        first, stop = (int(taken[0]), int(taken[-1]) + 1) if len(taken) else (0, 0)
        start, end = first * columns, stop * columns
        found = read(np.arange(start // self.width, -(-end // self.width))).reshape(-1)
        base = start % self.width
        return found[base : base + end - start].reshape(stop - first, columns)[taken - first, index[1]]


@dataclass(frozen=True, eq=False)
class Codes:
    """The codes of a matrix of that shape whose groups are runs of numbers, and may go on in the next row."""

    groups: Groups
    shape: tuple[int, int]
    scattered: ClassVar[bool] = True

    @property
    def dtype(self) -> np.dtype:
        return self.groups.code

    def read(self, index: Index = ()) -> np.ndarray:
        rows, columns = index
        width, group = self.shape[1], self.groups.width
        if width % group:
            return self.groups.run(index, width, self.groups.rows).view(self.dtype)
        taken = np.arange(rows.start, rows.stop, rows.step)
        first, last = columns.start // group, -(-columns.stop // group)
        numbers = self.groups.rows(taken[:, None] * (width // group) + np.arange(first, last))
        inside = slice(columns.start - first * group, columns.stop - first * group, columns.step)
        return numbers.reshape(len(taken), (last - first) * group)[:, inside].view(self.dtype)


@dataclass(frozen=True, eq=False)
class RowsApart:
    """The codes of a matrix of that shape, `step` rows of which are one row of the matrix of groups."""

    groups: Groups
    shape: tuple[int, int]
    scattered: ClassVar[bool] = True

    @property
    def dtype(self) -> np.dtype:
        return self.groups.code

    @property
    def step(self) -> int:
        return self.groups.width // self.shape[1]

    def read(self, index: Index = ()) -> np.ndarray:
        rows = np.arange(index[0].start, index[0].stop, index[0].step)
        return self.groups.rows(rows, self.step, index[1:]).view(self.dtype)


@dataclass(frozen=True, eq=False)
class OfBlocks:
    """A number for each few columns of a matrix of shape `of`, which are in one group of `group` numbers."""

    stored: Tensor
    of: tuple[int, int]
    group: int

    @property
    def together(self) -> int:
        """So many columns have one number."""
        return math.gcd(self.group, self.of[1])

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of[0], self.of[1] // self.together

    @property
    def dtype(self) -> np.dtype:
        return self.stored.dtype

    def read(self, index: Index = ()) -> np.ndarray:
        rows, blocks = (np.arange(size)[part] for size, part in zip(self.shape, index, strict=True))
        return self.stored.read()[:, 0][(rows[:, None] * self.of[1] + blocks * self.together) // self.group]


@dataclass(frozen=True, eq=False)
class Columns(OnlyFloats):
    """A matrix whose groups (axis 0) do not divide its rows, and lie in several columns: it is read as floats alone."""

    name: str
    groups: Groups
    scale: Tensor
    zero: Tensor
    shape: tuple[int, int]
    dtype: np.dtype = FLOAT32
    reason: ClassVar[str] = "its groups are pieces of several columns"

    @property
    def code(self) -> np.dtype:
        """The narrowest dtype of the codes."""
        return self.groups.code

    @property
    def stored(self) -> tuple[Tensor, ...]:
        return self.groups.packed, self.scale, self.zero

    @property
    def file(self) -> Path:
        return self.groups.packed.file

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.stored)

    def read(self, index: Index = ()) -> np.ndarray:
        """Returns a slice as float32. Slices may lack ends, and have positive steps."""
        return self.groups.run(with_ends(index, self.shape), self.shape[1], self._values)

    def _values(self, rows: np.ndarray) -> np.ndarray:
        zero, scale = (part.read().astype(FLOAT32) for part in (self.zero, self.scale))
        with np.errstate(over="ignore", invalid="ignore"):  # NaN and Inf are found, and told with the tensor's name
            return (self.groups.rows(rows).astype(FLOAT32) - zero) * scale
