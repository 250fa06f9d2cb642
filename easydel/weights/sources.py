"""The tensors that parameters are made of, wherever they come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import ml_dtypes
import numpy as np

from easydel.weights.expressions import Index, with_ends

FLOAT32 = np.dtype(np.float32)
_EXTRA_FLOATS = [np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2)]


class TensorSource(Protocol):
    """A checkpoint's tensor as a plan needs it; `checkpoint.Tensor` is one.

    A tensor that the file stores with its last two dimensions swapped may give that as `turned`, also a TensorSource.
    One that it stores in another shape may give that as `reshaped`.
    """

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    @property
    def file(self) -> Path: ...
    @property
    def nbytes(self) -> int: ...
    def read(self, index: Index = ()) -> np.ndarray: ...


@dataclass(frozen=True)
class Zeros:
    """Stands for a tensor that the checkpoint in `file` may lack, and lacks."""

    name: str
    shape: tuple[int, ...]
    file: Path
    dtype: np.dtype = FLOAT32
    nbytes: int = 0

    def read(self, index: Index = ()) -> np.ndarray:
        return np.broadcast_to(np.zeros((), self.dtype), self.shape)[index]


@dataclass(frozen=True, eq=False)
class Changed:
    """A tensor of the file that may read as another one."""

    of: TensorSource

    @property
    def name(self) -> str:
        return self.of.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape

    @property
    def dtype(self) -> np.dtype:
        return self.of.dtype

    @property
    def file(self) -> Path:
        return self.of.file

    @property
    def nbytes(self) -> int:
        return self.of.nbytes

    def read(self, index: Index = ()) -> np.ndarray:
        return self.of.read(index)


class Turned(Changed):
    """A tensor with its last two dimensions swapped; `turned` is the tensor as it is."""

    @property
    def turned(self) -> TensorSource:
        return self.of

    @property
    def shape(self) -> tuple[int, ...]:
        *leading, rows, columns = self.of.shape
        return (*leading, columns, rows)

    def read(self, index: Index = ()) -> np.ndarray:
        *leading, rows, columns = with_ends(index, self.shape)
        return self.of.read((*leading, columns, rows)).swapaxes(-1, -2)


@dataclass(frozen=True, eq=False)
class FirstRows(Changed):
    """The first `rows` of a tensor, or all of one that has fewer."""

    rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (min(self.rows, self.of.shape[0]), *self.of.shape[1:])

    def read(self, index: Index = ()) -> np.ndarray:
        return self.of.read(with_ends(index, self.shape))


class Spare(Changed):
    """A bias that a tool wrote whether the model has one or not. One of zeros that nothing reads may be left out."""


def is_spare(tensor: TensorSource) -> bool:
    """True for a tensor that may be left out."""
    return isinstance(tensor, Spare) and not np.any(tensor.read())


def is_number(dtype: np.dtype) -> bool:
    """True if a weight may have this dtype: a float, or the int8 of our own saved models."""
    return dtype == np.int8 or np.issubdtype(dtype, np.floating) or dtype in _EXTRA_FLOATS
