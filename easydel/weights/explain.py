"""The plan of a load as data: the bytes of files that each part of a parameter comes from, and their conversions.

It describes what `weights/execute.py` does, and reads nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from easydel.checkpoint import Tensor
from easydel.checkpoint.tensor import extent
from easydel.weights.arena import ALIGNMENT
from easydel.weights.blocks import memoryless
from easydel.weights.expressions import Copy, Expression, Index, Reshape, Rows, Source, Stack, chain
from easydel.weights.fill import mappable
from easydel.weights.keep import Part
from easydel.weights.plan import Plan
from easydel.weights.read import bytes_of, first_byte, is_contiguous
from easydel.weights.sources import Changed, TensorSource, Zeros

Action = Literal["map", "read", "gather", "cast", "keep", "dequantize", "quantize", "fill"]
ACTIONS: dict[Action, str] = {
    "map": "used where it lies in the file",
    "read": "copied as it is",
    "gather": "copied out of rows or columns that are not in one run",
    "cast": "converted to the storage dtype",
    "keep": "codes, scales and offsets, in the order in which they are stored",
    "dequantize": "decoded from blocks of numbers of a few bits",
    "quantize": "made int8 or int4 with scales",
    "fill": "zeros, which the file leaves out",
}


@dataclass(frozen=True)
class ReadStep:
    """Bytes `start` to `stop` of `file`: the span of the part of `tensor` that slice `index` of parameter `path` needs.

    `nbytes` of them belong to the part. `start` and `stop` are None for tensors without one place in a file.
    """

    path: str
    index: Index
    tensor: str
    file: Path
    start: int | None
    stop: int | None
    nbytes: int
    action: Action


def read_steps(
    plan: Plan,
    splits: Mapping[str, Sequence[int]],
    dtypes: Mapping[str, np.dtype],
    rounded: Collection[str] = (),
) -> Iterator[ReadStep]:
    """Yields a step for every tensor slice of every distinct part of every parameter.

    `splits` gives the number of equal parts in each dimension of a parameter, `dtypes` the dtype it is stored in. Those
    in `rounded` are quantized on the way, over whole rows, whatever columns a device holds.
    """
    for path, expression in plan.expressions.items():
        one = _Part(expression, plan.shapes[path], _counts(path, splits, rounded), dtypes[path], path in rounded)
        yield from one.steps(plan, path)


def bytes_by_action(
    plan: Plan,
    splits: Mapping[str, Sequence[int]],
    dtypes: Mapping[str, np.dtype],
    rounded: Collection[str] = (),
) -> dict[str, int]:
    """Returns the bytes of files for each action: the sums over `read_steps`, computed once for parameters that agree.

    A mixture's experts on hundreds of devices take millions of steps, of which few differ.
    """
    known: dict[Any, dict[str, int]] = {}
    totals: dict[str, int] = {}
    for path, expression in plan.expressions.items():
        one = _Part(expression, plan.shapes[path], _counts(path, splits, rounded), dtypes[path], path in rounded)
        for part in one.unstacked():
            key = part.key(plan)
            if key not in known:
                known[key] = _summed((step.action, step.nbytes) for step in part.steps(plan, path))
            for action, nbytes in known[key].items():
                totals[action] = totals.get(action, 0) + nbytes
    return totals


@dataclass(frozen=True)
class _Part:
    """A parameter, or one part of a stacked one, which is never `alone`: its bytes cannot be used where they lie.

    It is split into `counts` equal parts in each dimension.
    """

    expression: Expression
    shape: tuple[int, ...]
    counts: tuple[int, ...]
    dtype: np.dtype
    rounded: bool
    alone: bool = True

    def unstacked(self) -> Iterator[_Part]:
        """Yields the parts that a stack consists of, however many devices its leading dimension is split over."""
        if isinstance(self.expression, Stack):
            for part in self.expression.of:
                one = replace(self, expression=part, shape=self.shape[1:], counts=self.counts[1:], alone=False)
                yield from one.unstacked()
        else:
            yield self

    def steps(self, plan: Plan, path: str) -> Iterator[ReadStep]:
        for index in _parts(self.shape, self.counts):
            sizes = tuple(part.stop - part.start for part in index)
            mapped = self.alone and not self.rounded and mappable(plan, path, index, self.dtype) is not None
            for copy in self.expression.copies(index, memoryless(sizes)):
                action: Action = "quantize" if self.rounded else "map" if mapped else _action(plan, copy, self.dtype)
                yield _step(plan, path, index, copy, action)

    def key(self, plan: Plan) -> Any:
        """Returns what decides the bytes and actions of all steps; names and places in the file do not."""
        forms = tuple(_form(one, plan) for one in chain(self.expression))
        return forms, self.shape, self.counts, self.dtype, self.rounded, self.alone


def _form(expression: Expression, plan: Plan) -> Any:
    if isinstance(expression, Rows):
        return expression.index.tobytes(), expression.total, expression.dim
    if isinstance(expression, Reshape):
        return expression.theirs, expression.ours
    if not isinstance(expression, Source):
        return type(expression)
    tensor = plan.tensors[expression.name]
    if _stored(tensor) is None:  # its share of bytes counts, wherever they are
        return type(tensor), tensor.shape, tensor.dtype, tensor.nbytes
    if not isinstance(tensor, Tensor):
        return expression.name
    aligned = tensor.offset % ALIGNMENT
    return tensor.shape, tensor.dtype, tensor.strides, tensor.encoding, tensor.source is None, aligned


def _counts(path: str, splits: Mapping[str, Sequence[int]], rounded: Collection[str]) -> tuple[int, ...]:
    """Returns the number of parts in each dimension: quantizing needs whole rows."""
    counts = tuple(splits[path])
    return (*counts[:-1], 1) if path in rounded else counts


def _summed(steps: Iterable[tuple[str, int]]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for action, nbytes in steps:
        totals[action] = totals.get(action, 0) + nbytes
    return totals


def _parts(shape: Sequence[int], counts: Sequence[int]) -> Iterator[Index]:
    for place in product(*map(range, counts)):
        yield tuple(
            slice(dim // count * number, dim // count * (number + 1))
            for dim, count, number in zip(shape, counts, place, strict=True)
        )


def _action(plan: Plan, copy: Copy, dtype: np.dtype) -> Action:
    tensor = plan.tensors[copy.name]
    if isinstance(tensor, Zeros):
        return "fill"
    if isinstance(tensor, Part):
        return "keep"
    if _is_decoded(tensor):
        return "dequantize"
    if tensor.dtype != dtype:
        return "cast"
    in_order = copy.out.strides == memoryless(copy.out.shape).strides
    return "read" if isinstance(tensor, Tensor) and is_contiguous(tensor, copy.index) and in_order else "gather"


def _step(plan: Plan, path: str, index: Index, copy: Copy, action: Action) -> ReadStep:
    tensor = plan.tensors[copy.name]
    nbytes = bytes_of(tensor, copy.out.size)
    stored, sizes = _stored(tensor), [part.stop - part.start for part in copy.index]
    if stored is None:
        return ReadStep(path, index, tensor.name, tensor.file, None, None, nbytes, action)
    if stored is not tensor or stored.encoding is not None:  # whole blocks, or rows in another order: the whole tensor
        start, span = stored.offset, stored.nbytes
    else:
        start, span = first_byte(stored, copy.index), extent(sizes, stored.strides, stored.dtype.itemsize)
    return ReadStep(path, index, tensor.name, stored.file, start, start + span, nbytes, action)


def _stored(tensor: TensorSource) -> Tensor | None:
    """Returns the tensor of the file behind another one (`HFTensor`, `Changed`); None if it is made of several."""
    if isinstance(tensor, Changed):
        return _stored(tensor.of)
    stored = tensor if isinstance(tensor, Tensor) else getattr(tensor, "tensor", None)
    return stored if isinstance(stored, Tensor) else None


def _is_decoded(tensor: TensorSource) -> bool:
    """True if the file has fewer bits for a number than its dtype."""
    stored = _stored(tensor)
    if stored is None:
        return tensor.nbytes < prod(tensor.shape) * tensor.dtype.itemsize
    return stored.encoding is not None
