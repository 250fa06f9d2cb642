"""A parameter as an expression over checkpoint tensors, readable for any sub-slice and invertible.

Five forms cover every known layout: a tensor, its transpose, the same numbers in another shape, a selection of its rows
(fused q|k|v in any order, rotary permutations), and a stack of expressions (experts, layers).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from easydel.weights.reshape import regrouped

Index = tuple[slice, ...]
# name of a tensor, place within it, values
Piece = tuple[str, tuple[Any, ...], np.ndarray]


@dataclass(frozen=True)
class Copy:
    """A read: slice `index` of tensor `name` goes into `out`, a view of equal shape of the memory to fill."""

    name: str
    index: Index
    out: np.ndarray

    def in_runs(self, dims: int) -> Iterator[Copy]:
        """Yields equivalent copies that leave out nothing within their first `dims` dimensions."""
        stepped = next((dim for dim in range(dims) if (self.index[dim].step or 1) > 1), None)
        if stepped is None:
            yield self
            return
        found = self.index[stepped]
        for place, row in enumerate(range(found.start, found.stop, found.step)):
            index = (*self.index[:stepped], slice(row, row + 1), *self.index[stepped + 1 :])
            rows = (*[slice(None)] * stepped, slice(place, place + 1))
            yield from Copy(self.name, index, self.out[rows]).in_runs(dims)


@dataclass(frozen=True, slots=True)
class Source:
    """The tensor of that name, unchanged."""

    name: str

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {self.name: shape}

    def copies(self, index: Index, out: np.ndarray) -> Iterator[Copy]:
        yield Copy(self.name, index, out)

    def pieces(self, array: np.ndarray) -> Iterator[Piece]:
        yield self.name, (), array


@dataclass(frozen=True)
class Transpose:
    """The last two dimensions swapped (GPT-2's Conv1D)."""

    of: Expression

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return self.of.shapes((*shape[:-2], shape[-1], shape[-2]))

    def copies(self, index: Index, out: np.ndarray) -> Iterator[Copy]:
        yield from self.of.copies((*index[:-2], index[-1], index[-2]), out.swapaxes(-1, -2))

    def pieces(self, array: np.ndarray) -> Iterator[Piece]:
        yield from self.of.pieces(array.swapaxes(-1, -2))


@dataclass(frozen=True)
class Reshape:
    """The numbers of an expression of shape `theirs`, in the same order in shape `ours` (experts in one matrix)."""

    of: Expression
    theirs: tuple[int, ...]
    ours: tuple[int, ...]

    def __post_init__(self) -> None:
        assert prod(self.theirs) == prod(self.ours), self

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return self.of.shapes(self.theirs)

    def copies(self, index: Index, out: np.ndarray) -> Iterator[Copy]:
        for picked, wanted in regrouped(index, self.ours, self.theirs):
            yield from self.of.copies(wanted, out[picked].reshape(tuple(map(count_of, wanted)), copy=False))

    def pieces(self, array: np.ndarray) -> Iterator[Piece]:
        yield from self.of.pieces(array.reshape(self.theirs))


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows `index` (in that order) of an expression with `total` rows, along dimension `dim` (from the end)."""

    of: Expression
    index: np.ndarray
    total: int
    dim: int = -2

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        whole = list(shape)
        # a parameter with an unexpected number of rows shows as a wrong shape of the checkpoint's tensor
        whole[self.dim] = self.total + shape[self.dim] - len(self.index)
        return self.of.shapes(tuple(whole))

    def copies(self, index: Index, out: np.ndarray) -> Iterator[Copy]:
        dim, filled = len(index) + self.dim, 0
        for run in runs(self.index[index[dim]]):
            rows = (*[slice(None)] * dim, slice(filled, filled + count_of(run)))
            yield from self.of.copies((*index[:dim], run, *index[dim + 1 :]), out[rows])
            filled += count_of(run)

    def pieces(self, array: np.ndarray) -> Iterator[Piece]:
        assert isinstance(self.of, Source | Transpose)
        for name, _, values in self.of.pieces(array):
            dim = self.dim if isinstance(self.of, Source) else -3 - self.dim
            where: list[Any] = [slice(None)] * values.ndim
            where[dim] = self.index
            yield name, tuple(where), values


@dataclass(frozen=True)
class Stack:
    """Expressions of equal shape along a new leading dimension."""

    of: tuple[Expression, ...]

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {name: found for part in self.of for name, found in part.shapes(shape[1:]).items()}

    def copies(self, index: Index, out: np.ndarray) -> Iterator[Copy]:
        for row, part in enumerate(self.of[index[0]]):
            yield from part.copies(index[1:], out[row, ...])  # a view, even of a single number

    def pieces(self, array: np.ndarray) -> Iterator[Piece]:
        for row, part in enumerate(self.of):
            yield from part.pieces(array[row, ...])


Expression = Source | Transpose | Reshape | Rows | Stack


def straightened(
    expressions: Mapping[str, Expression], drops: Callable[[Expression, str], bool]
) -> tuple[dict[str, Expression], set[str]]:
    """Drops what is directly around a tensor of that name, where `drops` is true of it.

    Returns the new expressions, and the names it applied to: only tensors of which it is true for every reader.
    """

    def dropped(expression: Expression) -> bool:
        within = None if isinstance(expression, Source | Stack) else expression.of
        return isinstance(within, Source) and drops(expression, within.name)

    others = {name for expression in expressions.values() for name in _names(expression, dropped)}
    names = source_names(expressions).keys() - others
    return {path: _straight(expression, dropped, names) for path, expression in expressions.items()}, names


def _straight(expression: Expression, dropped: Callable[[Expression], bool], names: Collection[str]) -> Expression:
    if isinstance(expression, Source):
        return expression
    if isinstance(expression, Stack):
        return Stack(tuple(_straight(part, dropped, names) for part in expression.of))
    if dropped(expression) and isinstance(expression.of, Source) and expression.of.name in names:
        return expression.of
    return replace(expression, of=_straight(expression.of, dropped, names))


def runs(index: np.ndarray) -> Sequence[slice]:
    """Returns `index` as slices: one if its numbers are equally far apart, else one per run of consecutive numbers."""
    if not len(index):
        return [slice(0, 0)]
    gaps = np.diff(index)
    if len(gaps) and gaps[0] > 1 and np.all(gaps == gaps[0]):
        return [slice(int(index[0]), int(index[-1]) + 1, int(gaps[0]))]
    breaks = np.flatnonzero(gaps != 1) + 1
    starts, stops = np.r_[0, breaks], np.r_[breaks, len(index)]
    return [slice(int(index[a]), int(index[b - 1]) + 1) for a, b in zip(starts, stops, strict=True)]


def with_ends(index: Index, shape: Sequence[int]) -> Index:
    """Returns a slice with both ends for each dimension; those that `index` lacks are taken whole."""
    full = (*index, *[slice(None)] * (len(shape) - len(index)))
    return tuple(slice(*part.indices(size)) for part, size in zip(full, shape, strict=True))


def count_of(part: slice) -> int:
    """Returns the number of items that a slice with both ends takes."""
    return len(range(part.start, part.stop, part.step or 1))


def chain(expression: Expression) -> Iterator[Expression]:
    """Yields the expression and its nested ones down to a tensor; of a stack, whose parts are alike, only the first."""
    while not isinstance(expression, Source):
        yield expression
        expression = expression.of[0] if isinstance(expression, Stack) else expression.of
    yield expression


def assemble(shape: tuple[int, ...], dtype: np.dtype, pieces: Sequence[Piece]) -> np.ndarray:
    """Returns the tensor made of `pieces`, of a `dtype` that holds them all: the inverse of reading."""
    first = pieces[0]
    if not first[1]:
        return first[2]
    whole = np.empty(shape, dtype)
    for _, where, values in pieces:
        whole[where] = values
    return whole


def source_names(expressions: Mapping[str, Expression]) -> dict[str, list[str]]:
    """Maps each tensor that is read to the parameters that read it."""
    readers: dict[str, list[str]] = {}
    for path, expression in expressions.items():
        for name in _names(expression):
            readers.setdefault(name, []).append(path)
    return readers


def _names(expression: Expression, but: Callable[[Expression], bool] | None = None) -> Iterator[str]:
    """Yields the tensors that are read, without those within expressions of which `but` is true."""
    if isinstance(expression, Source):
        yield expression.name
    elif isinstance(expression, Stack):
        for part in expression.of:
            yield from _names(part, but)
    elif but is None or not but(expression):
        yield from _names(expression.of, but)
