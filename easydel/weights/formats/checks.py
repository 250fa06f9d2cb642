"""What can be wrong with the tensors that a matrix is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeGuard

import ml_dtypes
import numpy as np

from easydel.checkpoint import Tensor
from easydel.weights.formats.unpacking import Unpacking

BYTE, WORD = np.dtype(np.uint8), np.dtype(np.int32)
FLOATS = tuple(np.dtype(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.float32))


def misshapen(tensor: Tensor, what: str, shape: tuple[int, ...], *dtypes: np.dtype) -> Iterator[str]:
    """Yields what is wrong with a tensor that should have this shape, and one of the dtypes if any is given."""
    if tensor.shape != shape:
        yield f"{what} {list(tensor.shape)}, expected {list(shape)}"
    if dtypes and tensor.dtype not in dtypes:
        yield f"{what} {tensor.dtype}, expected {' or '.join(map(str, dtypes))}"


def beyond(it: Unpacking, zero: Tensor, bits: int) -> str | None:
    """Returns what is wrong with zero points that signed codes of that many bits do not reach, or None.

    Zero points on another machine are not looked at.
    """
    found, half = it.small(zero), 1 << (bits - 1)
    if found is None or not found.size or (found.min() >= -half and found.max() < half):
        return None
    return f"has zero points {found.min()} to {found.max()}, expected {-half} to {half - 1} for {bits} bits"


def is_group(size: object) -> TypeGuard[int]:
    """True for the number of columns of a group, where -1 stands for all of them."""
    return type(size) is int and (size > 0 or size == -1)
