"""Tensors of a checkpoint with adapters added to them, computed for whichever part is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np

from easydel.weights.sources import FLOAT32, TensorSource

BLOCK_BYTES = 16 << 20  # of the base, while lengths are computed


@dataclass(frozen=True, eq=False)
class _Changed:
    """A tensor in float32 that takes the place of `base`."""

    base: TensorSource

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.base.shape)

    @property
    def dtype(self) -> np.dtype:
        return FLOAT32

    @property
    def file(self) -> Path:
        return self.base.file

    @property
    def nbytes(self) -> int:
        return self.base.nbytes

    def _part(self, index: tuple[slice, ...]) -> tuple[slice, ...]:
        """Returns the slice of every dimension, with both ends."""
        full = (*index, *[slice(None)] * (len(self.shape) - len(index)))
        return tuple(slice(*one.indices(size)) for one, size in zip(full, self.shape, strict=True))

    def _read(self, index: tuple[slice, ...]) -> np.ndarray:
        return np.array(self.base.read(index), FLOAT32)  # a copy: it may be the mapped file


@dataclass(frozen=True, eq=False)
class Adapted(_Changed):
    """`base` + `scale` * `high` @ `low`, [..., r, in] and [..., out, r]; the base is [..., out, in].

    If `transposed`, the base is [..., in, out] instead. `magnitude` [out] is the length that each output's row gets
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
        part = self._part(index)
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
        blocks = (self._sum(self._part((slice(row, row + step),))) for row in range(0, rows, step))
        if self.transposed:
            return np.sqrt(sum(np.square(block).sum(axis=0) for block in blocks))
        return np.concatenate([np.linalg.norm(block, axis=1) for block in blocks])


@dataclass(frozen=True, eq=False)
class Shifted(_Changed):
    """`base` + `by`: a bias to which the one of an adapter is added."""

    by: np.ndarray

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Returns the slice `index`."""
        return self._read(index) + self.by[index]


@dataclass(frozen=True, eq=False)
class WithRows(_Changed):
    """`base` with its rows `numbers` replaced by `rows`: the vectors of new tokens."""

    numbers: tuple[int, ...]
    rows: np.ndarray

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Returns the slice `index`."""
        part = self._part(index)
        values = self._read(part)
        there = range(part[0].start, part[0].stop, part[0].step)
        for number, row in zip(self.numbers, self.rows, strict=True):
            if number in there:
                values[there.index(number)] = row[part[1:]]
        return values
