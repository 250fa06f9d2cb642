"""Slices cut into blocks that fit a scratch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from math import prod

import numpy as np

from easydel.weights.expressions import Index, count_of


def depth_of(shape: tuple[int, ...], itemsize: int, room: int) -> tuple[int, int]:
    """Returns the least number of leading dimensions whose single steps fit `room`, and the bytes of a step."""
    for depth in range(1, len(shape) + 1):
        below = prod(shape[depth:]) * itemsize
        if below <= room:
            return depth, below
    return 0, itemsize


def blocks_of(rows: Index, row_bytes: int, room: int) -> Iterator[tuple[Index, Index]]:
    """Cuts `rows` (slices of the leading dimensions) into blocks that fit `room`: (slice of the tensor, of the out)."""
    if not rows:
        yield (), ()
        return
    *outer, last = rows
    count = count_of(last)
    step = max(room // row_bytes, 1) if row_bytes else max(count, 1)
    for lead in np.ndindex(*map(count_of, outer)):
        block = tuple(_part(part, i, i + 1) for part, i in zip(outer, lead, strict=True))
        picked = tuple(slice(i, i + 1) for i in lead)
        for start in range(0, count, step):
            stop = min(start + step, count)
            yield (*block, _part(last, start, stop)), (*picked, slice(start, stop))


def _part(of: slice, start: int, stop: int) -> slice:
    """Returns slice(start, stop) of slice `of`, as one slice."""
    step = of.step or 1
    return slice(of.start + start * step, of.start + (stop - 1) * step + 1, of.step)


def within(common: Sequence[slice], index: Sequence[slice]) -> Index:
    """Returns `common` counted from the start of `index`."""
    return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(common, index, strict=True))


@cache
def memoryless(shape: tuple[int, ...]) -> np.ndarray:
    """Returns an array of which only the strides are real, to take views of but never to read."""
    strides = np.cumprod([1, *reversed([max(dim, 1) for dim in shape[1:]])])[::-1] if shape else ()
    return np.lib.stride_tricks.as_strided(np.empty(1, np.int8), shape, tuple(map(int, strides)), writeable=False)
