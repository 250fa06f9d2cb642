"""Quantized parameters that stay at their own bits: their codes, scales and offsets as expressions of their own.

A parameter is an expression over the checkpoint's tensors. The codes and the scales of its tensors are tensors as well
(`Part`), and the same expression over these gives the parameter's codes and its scales, for any slice, if blocks are
made small enough for what it does: rows are chosen one by one, so blocks become one row high. Blocks shrink too where
a device's part of the parameter would end inside of one; the number of the block then stands in several places.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from math import gcd, prod
from pathlib import Path

import ml_dtypes
import numpy as np

from easydel.forms import OFFSET, SCALE, Form, packed
from easydel.weights.coded import CodedTensor, Kind
from easydel.weights.expressions import (
    Expression,
    Index,
    Reshape,
    Rows,
    Source,
    Stack,
    Transpose,
    source_names,
    with_ends,
)
from easydel.weights.plan import Plan
from easydel.weights.sources import FLOAT32, TensorSource

Block = tuple[int, int]
Shape = tuple[int, ...]
BYTES = (np.int8, np.uint8)


@dataclass(frozen=True)
class Kept:
    """How a parameter is stored: its form, and the dtypes of scales and shifts (None: it has no shifts)."""

    form: Form
    scale: np.dtype
    shift: np.dtype | None


class NotKept(Exception):
    """The reason why a parameter cannot stay at its own bits."""


def coded_paths(plan: Plan) -> dict[str, bool]:
    """Maps the parameters that are made of coded tensors to whether they are made of nothing else."""
    found: dict[str, list[bool]] = {}
    for name, paths in source_names(plan.expressions).items():
        for path in paths:
            found.setdefault(path, []).append(isinstance(plan.tensors[name], CodedTensor))
    return {path: all(coded) for path, coded in found.items() if any(coded)}


def kept_as(plan: Plan, path: str, counts: Shape) -> Kept:
    """Returns how a parameter of coded tensors is stored if `counts` devices share each of its dimensions.

    Raises NotKept if it cannot be.
    """
    shape = plan.shapes[path]
    found = _form(plan.expressions[path], shape, plan.tensors)
    form = replace(found.form, block=_block(found.form.block, shape, counts))
    rows, columns = form.block
    if form.per_byte > 1 and (columns % form.per_byte or shape[-1] % form.per_byte):
        raise NotKept(f"{form.per_byte} codes of a byte are not in one block of {rows} x {columns}")
    beside = (found.scale.itemsize + (found.shift.itemsize if found.shift else 0)) * prod(form.scales_shape(shape))
    if 8 * beside + prod(shape) * form.bits >= 16 * prod(shape):
        raise NotKept(f"blocks of {rows} x {columns} take as much memory as 16-bit floats")
    return replace(found, form=form)


def keep(plan: Plan, kept: Mapping[str, Kept]) -> Plan:
    """Returns a plan that reads these parameters as codes, and scales and shifts as parameters of their own."""
    expressions, shapes, tensors = dict(plan.expressions), dict(plan.shapes), dict(plan.tensors)
    for path, stored in kept.items():
        shape, form = plan.shapes[path], stored.form
        build = _Parts(plan.tensors, form, form.is_by_rows(shape[-1]))
        parts: dict[str, tuple[Kind, Shape]] = {"": ("codes", form.codes_shape(shape))}
        parts[SCALE] = ("scales", form.scales_shape(shape))
        if stored.shift is not None:
            parts[OFFSET] = ("shifts", form.scales_shape(shape))
        for end, (kind, own) in parts.items():
            expression = build.expression(plan.expressions[path], shape, kind)
            whole = form.codes_shape(shape) if kind == "codes" else form.blocks(shape)
            expressions[f"{path}{end}"] = expression if whole == own else Reshape(expression, whole, own)
            shapes[f"{path}{end}"] = own
        tensors |= build.made
    return replace(plan, expressions=expressions, shapes=shapes, tensors=tensors)


def _form(expression: Expression, shape: Shape, tensors: Mapping[str, TensorSource]) -> Kept:
    """Returns the form of an expression of that shape, with blocks as large as can be."""
    if isinstance(expression, Source):
        return _form_of(tensors[expression.name])
    if isinstance(expression, Stack):
        return _common([_form(part, shape[1:], tensors) for part in expression.of])
    if isinstance(expression, Transpose):
        found = _form(expression.of, _swapped(shape), tensors)
        return _with_block(found, (found.form.block[1], found.form.block[0]))
    if isinstance(expression, Reshape):
        found = _form(expression.of, expression.theirs, tensors)
        if expression.theirs[-1] != expression.ours[-1]:
            raise NotKept(f"{list(expression.theirs)} is read as {list(expression.ours)}")
        return _with_block(found, (1, found.form.block[1]))
    found = _form(expression.of, _unpicked(expression, shape), tensors)
    rows, columns = found.form.block
    if expression.dim == -1:
        if columns != expression.total or found.form.per_byte > 1:
            raise NotKept("its columns are in another order")
        return _with_block(found, (rows, shape[-1]))
    return _with_block(found, (1, columns) if expression.dim == -2 else (rows, columns))


def _form_of(tensor: TensorSource) -> Kept:
    assert isinstance(tensor, CodedTensor)
    form, (rows, columns) = tensor.form, tensor.shape[-2:]
    every = slice(0, columns, 1)
    if tensor.gains(every) is not None:
        raise NotKept("each column has a factor")
    groups = tensor.groups(every)
    if groups is not None and not np.array_equal(groups, np.arange(columns) // form.block[1]):
        raise NotKept("columns of a group lie apart")
    block = (min(form.block[0], rows), min(form.block[1], columns))
    return Kept(replace(form, block=block), _dtype(tensor, "scales"), _dtype(tensor, "shifts") if form.shift else None)


def _dtype(tensor: CodedTensor, kind: Kind) -> np.dtype:
    """Returns the dtype of a tensor's scales or shifts as they are stored: no integers of less than a byte."""
    if kind == "scales" and tensor.has_factors:
        return FLOAT32
    dtype = tensor.scale_dtype if kind == "scales" else tensor.shift_dtype
    if dtype.name.startswith(("int", "uint")):
        small = ml_dtypes.iinfo(dtype)
        return next((np.dtype(wide) for wide in BYTES if _holds(wide, small.min, small.max)), FLOAT32)
    return dtype if dtype.itemsize <= FLOAT32.itemsize else FLOAT32


def _holds(wide: type, least: int, most: int) -> bool:
    return np.iinfo(wide).min <= least and most <= np.iinfo(wide).max


def _common(parts: Iterable[Kept]) -> Kept:
    first, *others = dict.fromkeys(parts)
    for other in others:
        if replace(other.form, block=(1, 1)) != replace(first.form, block=(1, 1)):
            raise NotKept(f"{first.form.code} and {other.form.code} with other tables or shifts are in one parameter")
    blocks = [part.form.block for part in (first, *others)]
    block = tuple(reduce(gcd, sizes) for sizes in zip(*blocks, strict=True))
    alike = all((part.scale, part.shift) == (first.scale, first.shift) for part in others)
    scale, shift = (first.scale, first.shift) if alike else (FLOAT32, first.shift and FLOAT32)
    return Kept(replace(first.form, block=block), scale, shift)


def _with_block(kept: Kept, block: Block) -> Kept:
    return replace(kept, form=replace(kept.form, block=block))


def _block(block: Block, shape: Shape, counts: Shape) -> Block:
    """Returns the largest block that divides each device's part; a block of all columns is of one row."""
    rows, columns = shape[-2:]
    if block[1] == columns:
        return 1, columns
    return gcd(block[0], rows // counts[-2]), gcd(block[1], columns // counts[-1])


def _swapped(shape: Shape) -> Shape:
    return (*shape[:-2], shape[-1], shape[-2])


def _unpicked(expression: Rows, shape: Shape) -> Shape:
    whole = list(shape)
    whole[expression.dim] = expression.total
    return tuple(whole)


@dataclass
class _Parts:
    """Makes expressions over the codes, scales or shifts of tensors in place of those over the tensors."""

    tensors: Mapping[str, TensorSource]
    form: Form
    by_rows: bool
    made: dict[str, TensorSource] = field(default_factory=dict)

    def expression(self, of: Expression, shape: Shape, kind: Kind, *, turned: bool = False) -> Expression:
        """Returns the expression like `of`, which has that shape; `turned` within a Transpose."""
        if isinstance(of, Source):
            return self._source(of.name, kind, turned)
        if isinstance(of, Stack):
            return Stack(tuple(self.expression(part, shape[1:], kind, turned=turned) for part in of.of))
        if isinstance(of, Transpose):
            return Transpose(self.expression(of.of, _swapped(shape), kind, turned=not turned))
        if isinstance(of, Reshape):
            inner = self.expression(of.of, of.theirs, kind, turned=turned)
            return Reshape(inner, self._counted(of.theirs, kind), self._counted(of.ours, kind))
        inner = self.expression(of.of, _unpicked(of, shape), kind, turned=turned)
        if of.dim == -1 and kind != "codes":
            return inner  # one block of all columns, in whatever order
        return replace(of, of=inner)

    def _counted(self, shape: Shape, kind: Kind) -> Shape:
        """Returns a shape of matrices as a shape of what is stored for them: a Reshape keeps columns."""
        columns = self.form.per_byte if kind == "codes" else shape[-1] if self.by_rows else self.form.block[1]
        return (*shape[:-1], shape[-1] // columns)

    def _source(self, name: str, kind: Kind, turned: bool) -> Source:
        tensor = self.tensors[name]
        assert isinstance(tensor, CodedTensor)
        part = Part(tensor, kind, self._unit(tensor, kind, turned), turned)
        plain = tensor.plain(kind)
        self.made[part.name] = part if plain is None or not part.is_plain else plain
        return Source(part.name)

    def _unit(self, tensor: CodedTensor, kind: Kind, turned: bool) -> Block:
        """Returns the rows and columns of the tensor that one stored number is for."""
        rows, columns = (1, self.form.per_byte) if kind == "codes" else self.form.block
        if kind != "codes" and self.by_rows:  # all columns of the tensor, of which the parameter may have some
            columns = tensor.shape[-2 if turned else -1]
        return (columns, rows) if turned else (rows, columns)


@dataclass(frozen=True, eq=False)
class Part:
    """The codes, scales or shifts of a tensor as a tensor: one number for each `unit` (rows, columns) of the tensor.

    Scales and shifts are repeated for units that are parts of a block. `turned` packs codes along rows.
    """

    of: CodedTensor
    kind: Kind
    unit: Block
    turned: bool = False

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
        return (*lead, rows // self.unit[0], columns // self.unit[1])

    @property
    def is_plain(self) -> bool:
        """True if it is the tensor's own array: nothing is repeated, multiplied or packed in another direction."""
        if self.kind == "codes":
            return not (self.turned and self.of.form.per_byte > 1)
        return self.unit == self.of.form.block and not (self.kind == "scales" and self.of.has_factors)

    @property
    def dtype(self) -> np.dtype:
        if self.kind == "codes":
            return self.of.form.held
        return _dtype(self.of, self.kind)

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def read(self, index: Index = ()) -> np.ndarray:
        index = with_ends(index, self.shape)
        return self._codes(index) if self.kind == "codes" else self._numbers(index)

    def _codes(self, index: Index) -> np.ndarray:
        *lead, rows, columns = index
        if not self.turned:
            return self.of.packed((*lead, rows, _widened(columns, self.unit[1])))
        codes = self.of.codes((*lead, _widened(rows, self.unit[0]), columns))
        return packed(codes.swapaxes(-1, -2), self.of.form).swapaxes(-1, -2)

    def _numbers(self, index: Index) -> np.ndarray:
        *lead, rows, columns = index
        spread = [
            _blocks(part, unit, size)
            for part, unit, size in zip((rows, columns), self.unit, self.of.form.block, strict=True)
        ]
        blocks = (*lead, *(touched for touched, _ in spread))
        found = self.of.scales(blocks) if self.kind == "scales" else self.of.shifts(blocks)
        for dim, (_, places) in zip((-2, -1), spread, strict=True):
            if not np.array_equal(places, np.arange(found.shape[dim])):
                found = np.take(found, places, axis=dim)
        if self.kind == "scales" and (factors := self.of.factors(tuple(lead))) is not None:
            found = found.astype(np.float32) * factors[..., None, None]
        return found.astype(self.dtype)


def _widened(part: slice, size: int) -> slice:
    assert (part.step or 1) == 1, part
    return slice(part.start * size, part.stop * size)


def _blocks(part: slice, unit: int, size: int) -> tuple[slice, np.ndarray]:
    """Returns the blocks of that size that a slice of units touches, and for each unit its block among those."""
    places = np.arange(part.start, part.stop, part.step or 1) * unit // size
    if not len(places):
        return slice(0, 0), places
    return slice(int(places[0]), int(places[-1]) + 1), places - places[0]
