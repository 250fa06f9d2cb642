"""What quantized matrices have in common that are made of tensors of a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from easydel.checkpoint import Tensor
from easydel.weights.coded import CodedTensor

WORD = np.dtype(np.int32)
BYTE = np.dtype(np.uint8)
FLOATS = tuple(np.dtype(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.float32))


class PackedTensor(CodedTensor):
    """A CodedTensor whose fields include the tensors of the file that it is made of, the one of its codes first."""

    @property
    def parts(self) -> Iterator[Tensor]:
        return (value for value in vars(self).values() if isinstance(value, Tensor))

    @property
    def file(self) -> Path:
        return next(self.parts).file

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


def misshapen(tensor: Tensor, what: str, shape: tuple[int, ...], *dtypes: np.dtype) -> Iterator[str]:
    """Yields what is wrong with a tensor that should have this shape, and one of the dtypes if any is given."""
    if tensor.shape != shape:
        yield f"{what} {list(tensor.shape)}, expected {list(shape)}"
    if dtypes and tensor.dtype not in dtypes:
        yield f"{what} {tensor.dtype}, expected {' or '.join(map(str, dtypes))}"
