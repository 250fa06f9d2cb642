"""Tensors of a checkpoint with adapters added to them, computed for whichever part is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock

import numpy as np

from easydel.weights.expressions import with_ends
from easydel.weights.sources import FLOAT32, Changed

BLOCK_BYTES = 16 << 20  # of the base, while lengths are computed


class _Floats(Changed):
    """A tensor in float32 that takes the place of `of`."""

    @property
    def dtype(self) -> np.dtype:
        return FLOAT32

    def _read(self, index: tuple[slice, ...]) -> np.ndarray:
        return np.array(self.of.read(index), FLOAT32)  # a copy: it may be the mapped file


@dataclass(frozen=True, eq=False)
class Adapted(_Floats):
    """`of` + `scale` * `high` @ `low`, [..., r, in] and [..., out, r]; `of` is [..., out, in].

    If `transposed`, `of` is [..., in, out] instead. `magnitude` [out] is the length that each output's row gets
    (DoRA, Liu et al. 2024, arXiv:2402.09353).
    """

    low: np.ndarray
    high: np.ndarray
    scale: float
    transposed: bool = False
    magnitude: np.ndarray | None = None
    _factors: list[np.ndarray] = field(default_factory=list)
    _lock: Lock = field(default_factory=Lock)

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Returns the slice `index`."""
        part = with_ends(index, self.shape)
        values = self._sum(part)
        if self.magnitude is None:
            return values
        with self._lock:  # one thread computes what all need
            if not self._factors:
                self._factors.append(self.magnitude / self._lengths())
        factors = self._factors[0][part[-1 if self.transposed else -2]]
        return values * (factors if self.transposed else factors[:, None])

    def _sum(self, part: tuple[slice, ...]) -> np.ndarray:
        *stack, outputs, inputs = (*part[:-2], part[-1], part[-2]) if self.transposed else part
        product = self.high[(*stack, outputs)] @ self.low[(*stack, slice(None), inputs)]
        product *= self.scale
        return self._read(part) + (product.swapaxes(-1, -2) if self.transposed else product)

    def _lengths(self) -> np.ndarray:
        """Returns the Euclidean length of each output's row of the sum."""
        rows, width = self.shape
        step = max(BLOCK_BYTES // (width * FLOAT32.itemsize), 1)
        blocks = (self._sum(with_ends((slice(row, row + step),), self.shape)) for row in range(0, rows, step))
        if self.transposed:
            return np.sqrt(sum(np.square(block).sum(axis=0) for block in blocks))
        return np.concatenate([np.linalg.norm(block, axis=1) for block in blocks])


@dataclass(frozen=True, eq=False)
class Shifted(_Floats):
    """`of` + `by`: a bias to which the one of an adapter is added."""

    by: np.ndarray

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Returns the slice `index`."""
        return self._read(index) + self.by[index]


@dataclass(frozen=True, eq=False)
class WithRows(_Floats):
    """`of` with its rows `numbers` replaced by `rows`: the vectors of new tokens."""

    numbers: tuple[int, ...]
    rows: np.ndarray

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Returns the slice `index`."""
        part = with_ends(index, self.shape)
        values = self._read(part)
        there = range(part[0].start, part[0].stop, part[0].step)
        for number, row in zip(self.numbers, self.rows, strict=True):
            if number in there:
                values[there.index(number)] = row[part[1:]]
        return values
