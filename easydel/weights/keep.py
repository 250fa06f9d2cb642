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

import numpy as np

from easydel.forms import FACTOR, GAIN, OFFSET, ORDER, SCALE, Form
from easydel.weights.coded import KINDS, CodedTensor, Kind, OnlyFloats
from easydel.weights.coded_parts import FOR_ALL_ROWS, Block, Part, dtype_of
from easydel.weights.expressions import (
    Expression,
    Reshape,
    Rows,
    Source,
    Stack,
    Transpose,
    source_names,
)
from easydel.weights.plan import Plan
from easydel.weights.sources import FLOAT32, TensorSource

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Kept:
    """How a parameter is stored: its form, and the dtypes of scales and shifts (None: it has no shifts)."""

    form: Form
    scale: np.dtype
    shift: np.dtype | None


class NotKept(Exception):
    """The reason why a parameter cannot stay at its own bits."""


def coded_paths(plan: Plan) -> dict[str, bool]:
    """Maps the parameters that are made of coded tensors, or `OnlyFloats`, to whether they are made of nothing else."""
    found: dict[str, list[bool]] = {}
    for name, paths in source_names(plan.expressions).items():
        for path in paths:
            found.setdefault(path, []).append(isinstance(plan.tensors[name], CodedTensor | OnlyFloats))
    return {path: all(coded) for path, coded in found.items() if any(coded)}


def kept_as(plan: Plan, path: str, counts: Shape) -> Kept:
    """Returns how a parameter of coded tensors is stored if `counts` devices share each of its dimensions.

    Raises NotKept if it cannot be.
    """
    shape = plan.shapes[path]
    found = _form(plan.expressions[path], shape, plan.tensors)
    form = _with_block(found, _block(found.form, shape, counts)).form
    rows, columns = form.block
    own = shape[-1] // counts[-1]
    if form.per_byte > 1 and (own % form.per_byte or (columns > 1 and columns % form.per_byte)):
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
        for end, own in form.parts(shape).items():
            expression = build.expression(plan.expressions[path], shape, KINDS[end])
            whole = form.blocks(shape) if end in (SCALE, OFFSET) else own
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
        found = _without_order(_form(expression.of, _swapped(shape), tensors))
        if found.form.step > 1:
            raise NotKept("rows of its blocks lie apart, and are columns of the parameter")
        return _with_block(found, (found.form.block[1], found.form.block[0]))
    if isinstance(expression, Reshape):
        found = _form(expression.of, expression.theirs, tensors)
        if expression.theirs[-1] != expression.ours[-1]:
            raise NotKept(f"{list(expression.theirs)} is read as {list(expression.ours)}")
        if expression.theirs[:-2] != expression.ours[:-2]:
            found = _without_factor(_without_order(found))
        return _with_block(found, (1, found.form.block[1]))
    found = _form(expression.of, _unpicked(expression, shape), tensors)
    rows, columns = found.form.block
    if expression.dim == -1:
        if columns != expression.total or found.form.per_byte > 1:
            raise NotKept("its columns are in another order")
        found = _without_order(found)
        return _with_block(found, (rows, shape[-1]))
    return _with_block(found, (1, columns) if expression.dim == -2 else (rows, columns))


def _form_of(tensor: TensorSource) -> Kept:
    if isinstance(tensor, OnlyFloats):
        raise NotKept(tensor.reason)
    assert isinstance(tensor, CodedTensor)
    form, (rows, columns) = tensor.form, tensor.shape[-2:]
    order, width, groups = tensor.arranged, min(form.block[1], columns), tensor.groups(slice(0, columns, 1))
    if order is not None and groups is not None and not np.array_equal(groups[order], np.arange(columns) // width):
        raise NotKept("its groups of columns are of several sizes")
    form = replace(form, block=(min(form.block[0], rows), width), extra=tensor.extra())
    return Kept(form, dtype_of(tensor, "scales"), dtype_of(tensor, "shifts") if form.shift else None)


def _without_order(kept: Kept) -> Kept:
    if {ORDER, GAIN} & {*kept.form.extra}:
        raise NotKept("columns that have an order or factors of their own are not the columns of the parameter")
    return kept


def _without_factor(kept: Kept) -> Kept:
    """Returns the same with factors multiplied into the scales."""
    if FACTOR not in kept.form.extra:
        return kept
    extra = tuple(end for end in kept.form.extra if end != FACTOR)
    return replace(kept, form=replace(kept.form, extra=extra), scale=FLOAT32)


def _common(parts: Iterable[Kept]) -> Kept:
    first, *others = dict.fromkeys(parts)
    for other in others:
        if replace(other.form, block=(1, 1), extra=()) != replace(first.form, block=(1, 1), extra=()):
            told = f"{first.form.code} and {other.form.code} with other tables or shifts, or rows apart,"
            raise NotKept(f"{told} are in one parameter")
    blocks = [part.form.block for part in (first, *others)]
    found = {end for part in (first, *others) for end in part.form.extra}
    extra = tuple(end for end in (FACTOR, ORDER, GAIN) if end in found)
    if ORDER in extra and len({*blocks}) > 1:
        raise NotKept("columns are in the order of groups of several sizes")
    rows, columns = (reduce(gcd, sizes) for sizes in zip(*blocks, strict=True))
    alike = all((part.scale, part.shift) == (first.scale, first.shift) for part in others)
    scale, shift = (first.scale, first.shift) if alike else (FLOAT32, first.shift and FLOAT32)
    return _with_block(Kept(replace(first.form, extra=extra), scale, shift), (rows, columns))


def _with_block(kept: Kept, block: Block) -> Kept:
    return replace(kept, form=replace(kept.form, block=block, step=kept.form.step if block[0] > 1 else 1))


def _block(form: Form, shape: Shape, counts: Shape) -> Block:
    """Returns the largest block that divides each device's part; a block of all columns is of one row."""
    rows, columns = (size // count for size, count in zip(shape[-2:], counts[-2:], strict=True))
    if form.block[1] == shape[-1] and form.step == 1:
        return 1, shape[-1]
    return 1 if rows % form.step else gcd(form.block[0], rows // form.step), gcd(form.block[1], columns)


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
        if kind in FOR_ALL_ROWS:
            return self._for_all_rows(of, shape, kind)
        if isinstance(of, Transpose):
            return Transpose(self.expression(of.of, _swapped(shape), kind, turned=not turned))
        if isinstance(of, Reshape):
            inner = self.expression(of.of, of.theirs, kind, turned=turned)
            return Reshape(inner, self._counted(of.theirs, kind), self._counted(of.ours, kind))
        inner = self.expression(of.of, _unpicked(of, shape), kind, turned=turned)
        if of.dim == -1 and kind != "codes":
            return inner  # one block of all columns, in whatever order
        return replace(of, of=inner)

    def _for_all_rows(self, of: Transpose | Reshape | Rows, shape: Shape, kind: Kind) -> Expression:
        """Returns the expression of what has only the leading dimensions, and perhaps that of columns."""
        if isinstance(of, Transpose):
            return self.expression(of.of, _swapped(shape), kind)
        if isinstance(of, Reshape):
            return self.expression(of.of, of.theirs, kind)
        inner = self.expression(of.of, _unpicked(of, shape), kind)
        gone = 2 if kind == "factors" else 1  # dimensions of the matrix that it lacks
        return inner if of.dim >= -2 else replace(of, of=inner, dim=of.dim + gone)

    def _counted(self, shape: Shape, kind: Kind) -> Shape:
        """Returns a shape of matrices as a shape of what is stored for them: a Reshape keeps columns."""
        columns = self.form.per_byte if kind == "codes" else shape[-1] if self.by_rows else self.form.block[1]
        return (*shape[:-1], shape[-1] // columns)

    def _source(self, name: str, kind: Kind, turned: bool) -> Source:
        tensor = self.tensors[name]
        assert isinstance(tensor, CodedTensor)
        whole = FACTOR not in self.form.extra
        part = Part(tensor, kind, self._unit(tensor, kind, turned), turned, ORDER in self.form.extra, whole)
        plain = tensor.plain(kind)
        # several tensors may be parts of one in the file, and have its name: a GGUF file's experts
        key = f"{name}{part.name.removeprefix(tensor.name)}"
        self.made[key] = part if plain is None or not part.is_plain else plain
        return Source(key)

    def _unit(self, tensor: CodedTensor, kind: Kind, turned: bool) -> Block:
        """Returns the rows and columns of the tensor that one stored number is for."""
        rows, columns = (1, self.form.per_byte) if kind == "codes" else self.form.block
        if kind != "codes" and self.by_rows:  # all columns of the tensor, of which the parameter may have some
            columns = tensor.shape[-2 if turned else -1]
        return (columns, rows) if turned else (rows, columns)
