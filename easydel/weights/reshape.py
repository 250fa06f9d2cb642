"""The place of an array's slice in the same numbers of another shape, both in row-major order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, product
from math import prod

Slices = tuple[slice, ...]
Pair = tuple[Slices, Slices]


def regrouped(index: Slices, ours: Sequence[int], theirs: Sequence[int]) -> Iterator[Pair]:
    """Yields slice `index` of shape `ours` in pieces that are slices of shape `theirs`: (place in `index`, slice).

    Both of a pair hold the same numbers in the same order. Dimensions that both shapes have are not cut.
    """
    if any(part.start >= part.stop for part in index):
        return
    groups = [list(_pairs(index[a:b], ours[a:b], theirs[c:d])) for a, b, c, d in _groups(ours, theirs)]
    for pairs in product(*groups):
        yield tuple(chain(*(own for own, _ in pairs))), tuple(chain(*(their for _, their in pairs)))


def _groups(ours: Sequence[int], theirs: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """Yields dimensions a to b of ours and c to d of theirs that hold the same numbers, as few at a time as can be."""
    b = d = 0
    while b < len(ours) or d < len(theirs):
        a, c, own, their = b, d, 1, 1
        while (b, d) == (a, c) or own != their:
            if own <= their and b < len(ours):
                own, b = own * ours[b], b + 1
            else:
                their, d = their * theirs[d], d + 1
        yield a, b, c, d


def _pairs(index: Slices, ours: Sequence[int], theirs: Sequence[int]) -> Iterator[Pair]:
    """Yields the pairs of `regrouped` for one group: each run of its last dimension is a run of numbers."""
    if list(ours) == list(theirs):
        yield (slice(None),) * len(index), index
        return
    *outer, last = [range(part.start, part.stop, part.step or 1) for part in index] or [range(1)]
    runs = [last] if last.step == 1 else [range(number, number + 1) for number in last]
    for places in product(*map(range, map(len, outer))):
        row = 0
        for rows, place, dim in zip(outer, places, ours, strict=False):
            row = row * dim + rows[place]
        first, filled = row * (ours[-1] if ours else 1), 0
        for run in runs:
            for box in _boxes(first + run.start, first + run.stop, theirs):
                count = prod(part.stop - part.start for part in box)
                own = (*(slice(place, place + 1) for place in places), slice(filled, filled + count))
                yield own[: len(index)], box
                filled += count


def _boxes(start: int, stop: int, dims: Sequence[int]) -> Iterator[Slices]:
    """Yields numbers `start` to `stop` of an array with these `dims` as its slices, in order and as few as possible."""
    if not dims:
        yield ()
        return
    below = prod(dims[1:])
    while start < stop:
        row, passed = divmod(start, below)
        whole = 0 if passed else (stop - start) // below
        if whole:
            yield (slice(row, row + whole), *(slice(0, dim) for dim in dims[1:]))
            start += whole * below
        else:
            end = min(stop, (row + 1) * below)
            for box in _boxes(passed, passed + end - start, dims[1:]):
                yield (slice(row, row + 1), *box)
            start = end
