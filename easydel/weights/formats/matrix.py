"""Matrices put together from parts of a checkpoint: codes, scales, and what else a format has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import ml_dtypes
import numpy as np

from easydel.checkpoint import Tensor
from easydel.errors import CheckpointError
from easydel.forms import Form
from easydel.weights.coded import INTEGERS, CodedTensor, Kind
from easydel.weights.expressions import Index
from easydel.weights.formats.at_hand import at_hand
from easydel.weights.formats.parts import EXPONENT, FLOAT4, Arranged, Part, Stream, viewed
from easydel.weights.formats.unpacking import Unpacking
from easydel.weights.sources import Turned

FLOAT8 = [np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2)]
GROUPS = [np.dtype(np.int32), np.dtype(np.int64)]
SCALES = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), FLOAT8[0], EXPONENT]


@dataclass(frozen=True, eq=False)
class Matrix(CodedTensor):
    """A coded tensor over parts of the same leading dimensions.

    `stored` are the tensors of the file that it is made of, codes first. `factor` has the leading dimensions alone,
    `gain` the columns alone, and `order` the block of each column.
    """

    name: str
    form: Form
    stored: tuple[Tensor, ...]
    code: Part
    scale: Part
    shift: Part | None = None
    factor: Part | None = None
    order: Part | None = None
    gain: Part | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.code.shape

    @property
    def file(self) -> Path:
        return self.stored[0].file

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.stored)

    @property
    def scale_dtype(self) -> np.dtype:
        return self.scale.dtype

    @property
    def shift_dtype(self) -> np.dtype:
        return self.form.code if self.shift is None else self.shift.dtype

    @property
    def has_factors(self) -> bool:
        return self.factor is not None

    @property
    def by_columns(self) -> bool:
        return self.order is None and getattr(self.code, "by_columns", False)

    @property
    def scattered(self) -> bool:
        ordered = self.order is not None and getattr(self.code, "by_columns", False)
        return ordered or getattr(self.code, "scattered", False)

    def at_hand(self, kind: Kind | None = None) -> Matrix:
        parts = {"codes": ("code",), "scales": ("scale", "factor"), "shifts": ("shift",)}
        names = parts.get(kind or "", ("code", "scale", "shift", "factor", "order", "gain"))
        return replace(self, **{name: at_hand(getattr(self, name)) for name in names})

    def plain(self, kind: Kind) -> Tensor | None:
        part = {"codes": self.code, "scales": self.scale, "shifts": self.shift}.get(kind)
        return part if isinstance(part, Tensor) and (kind != "codes" or part.dtype == self.form.held) else None

    def codes(self, index: Index) -> np.ndarray:
        return self.code.read(index)

    def packed(self, index: Index, *, turned: bool = False) -> np.ndarray:
        held = None
        if isinstance(self.code, Stream | Arranged) and self.form.per_byte > 1:
            held = self.code.held(index, self.form.bits, len(self.shape) - (2 if turned else 1))
        return super().packed(index, turned=turned) if held is None else held

    def values(self, index: Index) -> np.ndarray:
        if isinstance(self.code, Stream) and self.code.dtype == FLOAT4:
            return self.code.read_floats(index)
        return super().values(index)

    def scales(self, index: Index) -> np.ndarray:
        return self.scale.read(index)

    def shifts(self, index: Index) -> np.ndarray:
        assert self.shift is not None
        return self.shift.read(index)

    def factors(self, index: Index) -> np.ndarray | None:
        return None if self.factor is None else self.factor.read(index).astype(np.float32)

    def groups(self, columns: slice) -> np.ndarray | None:
        if self.order is None:
            return None
        found, most = self.order.read((columns,)), self.scale.shape[-1]
        if found.size and not 0 <= found.min() <= found.max() < most:
            problem = f"g_idx has groups {found.min()} to {found.max()}, of {most}"
            raise CheckpointError(problem, file=self.file, tensor=self.name)
        return found

    def gains(self, columns: slice) -> np.ndarray | None:
        return None if self.gain is None else self.gain.read((columns,)).astype(np.float32)


@dataclass
class Pieces:
    """What a reader found for one matrix.

    `block` has the rows and columns of a block. None stands for one or all of them, as the scales' shape says.
    """

    code: Part
    scale: Part
    block: tuple[int | None, int | None] = (None, None)
    scale_dims: tuple[int | None, ...] | None = None
    zero: Part | None = None
    factor: Part | None = None
    order: Tensor | None = None
    gain: Tensor | None = None
    turned: bool = False


def put(it: Unpacking, name: str, stored: tuple[Tensor | None, ...], pieces: Pieces) -> None:
    """Puts the matrix `name` in the place of its pieces, or refuses its first tensor because they do not fit."""
    tensors = tuple(tensor for tensor in stored if tensor is not None)
    made = _matrix(name, tensors, pieces)
    if isinstance(made, str):
        it.refuse(tensors[0], made)
    else:
        it.put(name, Turned(made) if pieces.turned else made)


def _matrix(name: str, stored: tuple[Tensor, ...], pieces: Pieces) -> Matrix | str:
    """Returns the matrix, or the reason why its pieces do not fit."""
    shape, scale, factor = pieces.code.shape, _arranged(pieces), pieces.factor
    if factor is not None and len(shape) == 2 and prod(factor.shape) == 1:
        factor = Arranged(factor, ())
    block = block_of(shape, scale.shape, pieces.block)
    if problem := _dtype_problem(pieces) or _shape_problem(pieces, scale, factor):
        return problem
    if isinstance(block, str):
        return block
    form = Form(pieces.code.dtype, block, shift="" if pieces.zero is None else "zero")
    matrix = Matrix(name, form, stored, pieces.code, scale, pieces.zero, factor, pieces.order, pieces.gain)
    if pieces.order is not None and pieces.order.source is None:
        try:
            matrix.groups(slice(0, shape[-1]))
        except CheckpointError as error:
            return error.problem
    return matrix


def _dtype_problem(pieces: Pieces) -> str | None:
    if pieces.scale.dtype not in (*SCALES, np.dtype(np.uint8)):
        return f"has scales that are {pieces.scale.dtype}, expected floating-point numbers or exponents"
    if (zero := pieces.zero) is not None and not (np.issubdtype(zero.dtype, np.integer) or zero.dtype in INTEGERS):
        return f"has zero points that are {zero.dtype}, expected integers"
    for part, dtypes in ((pieces.order, GROUPS), (pieces.gain, SCALES), (pieces.factor, SCALES)):
        if part is not None and part.dtype not in dtypes:
            return f"has a part that is {part.dtype} beside it, expected one of {', '.join(map(str, dtypes))}"
    return None


def _shape_problem(pieces: Pieces, scale: Part, factor: Part | None) -> str | None:
    shape = pieces.code.shape
    if len(shape) < 2 or 0 in shape:
        return f"is {list(shape)}, expected a matrix"
    if prod(scale.shape) != prod(pieces.scale.shape):
        return f"is {list(shape)}, its scales are {list(pieces.scale.shape)}, of other dimensions"
    if pieces.zero is not None and pieces.zero.shape != scale.shape:
        return f"has zero points {list(pieces.zero.shape)}, expected {list(scale.shape)} like its scales"
    if factor is not None and factor.shape != shape[:-2]:
        return f"has a global scale {list(factor.shape)}, expected {list(shape[:-2])}"
    for columns in (pieces.order, pieces.gain):
        if columns is not None and columns.shape != shape[-1:]:
            return f"has {columns.name} {list(columns.shape)}, expected {list(shape[-1:])}"
    return None


def _arranged(pieces: Pieces) -> Part:
    """Returns scales with as many dimensions as the matrix: those that the file leaves out are the last."""
    scale, own, ndim = pieces.scale, len(pieces.scale.shape), len(pieces.code.shape)
    dims = pieces.scale_dims
    if dims is None:  # ModelOpt writes blocks as [rows, 1, columns, 1]
        dims = tuple(range(0, own, 2)) if own == 2 * ndim else with_units(scale, ndim)
    part: Part = scale if dims == tuple(range(own)) else Arranged(scale, dims)
    return viewed(part, EXPONENT) if scale.dtype == np.uint8 else part


def with_units(part: Part, ndim: int) -> tuple[int | None, ...]:
    """Returns the dimensions of an array with further ones of size 1 behind its own (see `Arranged`)."""
    own = len(part.shape)
    return (*range(own), *[None] * (ndim - own))


def block_of(
    shape: tuple[int, ...], scales: tuple[int, ...], given: tuple[int | None, int | None]
) -> tuple[int, int] | str:
    """Returns the rows and columns of a block of a matrix, or the reason why scales of that shape do not fit it.

    Groups of columns fill a row; blocks of several rows may stand out over the matrix.
    """
    sizes: list[int] = []
    if len(scales) != len(shape) or len(shape) < len(given):
        return f"is {list(shape)}, its scales are {list(scales)}, expected matrices"
    for size, count, block in zip(shape[-2:], scales[-2:], given, strict=True):
        if block and -(-size // block) == count and (given[0] != 1 or size % block == 0):
            sizes.append(block)
        elif not block and count in (1, size):
            sizes.append(size // count)
    if scales[:-2] != shape[:-2] or len(sizes) < len(given):
        rows, columns = (block or "1 or all" for block in given)
        return f"is {list(shape)}, its scales are {list(scales)}: not of blocks of {rows} rows and {columns} columns"
    return sizes[0], sizes[1]


def if_fitting(
    shape: tuple[int, ...], scales: tuple[int, ...], block: tuple[int | None, int | None]
) -> tuple[int | None, int | None]:
    """Returns `block` if scales of that shape are of such blocks, else that sizes tell."""
    return (None, None) if isinstance(block_of(shape, scales, block), str) else block


def pair_of(stated: object) -> tuple[int | None, int | None]:
    """Returns rows and columns of a block as JSON has them; None for anything else."""
    if isinstance(stated, list) and len(stated) == len(("rows", "columns")) and {*map(type, stated)} == {int}:
        return (stated[0], stated[1]) if min(stated) > 0 else (None, None)
    return None, None


def groups_of(size: int, count: int) -> int:
    """Returns the size of `count` equal groups of a row; 0 if it cannot have that many."""
    return size // count if count and size % count == 0 else 0
