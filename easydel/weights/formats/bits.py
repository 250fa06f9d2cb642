"""Numbers of 1 to 8 bits, packed into integers as one stream: the first number is in the lowest bits of the first one.

Integers are little-endian, so that a number may cross from one to the next.
"""

from __future__ import annotations

from functools import cache

import ml_dtypes
import numpy as np

from easydel.checkpoint import Tensor
from easydel.weights.expressions import Index


def unpacked(words: np.ndarray, bits: int) -> np.ndarray:
    """Returns the numbers in the last dimension of integers, as uint8; bits that fill no number are left out."""
    packed = np.ascontiguousarray(words).view(np.uint8)
    if 8 % bits == 0:
        return _fields(bits)[packed].view(np.uint8) if bits < 8 else packed
    *leading, size = packed.shape
    count = size * 8 // bits
    wide = np.zeros((*leading, -(-size // bits), 8), np.uint8)  # 8 numbers are as many bytes as a number has bits
    whole = size // bits
    wide[..., :whole, :bits] = packed[..., : whole * bits].reshape(*leading, whole, bits)
    if size % bits:
        wide[..., whole, : size % bits] = packed[..., whole * bits :]
    shifts = np.arange(8, dtype=np.uint64) * np.uint64(bits)
    numbers = (wide.view("<u8") >> shifts & np.uint64((1 << bits) - 1)).astype(np.uint8)
    return numbers.reshape(*leading, 8 * wide.shape[-2])[..., :count]


def read_along_columns(packed: Tensor, index: Index, bits: int) -> np.ndarray:
    """Returns a slice of numbers that are packed along the last dimension, as uint8."""
    *leading, columns = index
    words, inside = window(columns, bits, packed)
    return unpacked(packed.read((*leading, words)), bits)[..., inside]


def read_along_rows(packed: Tensor, index: Index, bits: int) -> np.ndarray:
    """Returns the transpose of a slice (of rows, columns) of numbers that are packed along rows, as uint8."""
    rows, columns = index
    words, inside = window(rows, bits, packed)
    return unpacked(packed.read((words, columns)).T, bits)[..., inside]


def window(part: slice, bits: int, packed: Tensor) -> tuple[slice, slice]:
    """Returns the integers of `packed` around a slice of numbers, and the slice of those integers' numbers."""
    unit = 8 * packed.dtype.itemsize  # so many numbers fill `bits` integers
    first, last = part.start // unit, -(-part.stop // unit)
    base = first * unit
    return slice(first * bits, last * bits), slice(part.start - base, part.stop - base, part.step)


def unsigned(bits: int) -> np.dtype:
    """Returns the narrowest dtype for numbers from 0 on of that many bits."""
    return np.dtype(ml_dtypes.uint2 if bits <= 2 else ml_dtypes.uint4 if bits <= 4 else np.uint8)


def signed(bits: int) -> np.dtype:
    """Returns the narrowest dtype for numbers around 0 of that many bits."""
    return np.dtype(ml_dtypes.int2 if bits <= 2 else ml_dtypes.int4 if bits <= 4 else np.int8)


def centred(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Returns numbers from 0 on (uint8) less half their range, in the narrowest dtype."""
    mask = 3 if bits <= 2 else 15 if bits <= 4 else 255
    return ((numbers - np.uint8(1 << (bits - 1))) & np.uint8(mask)).view(signed(bits))


@cache
def _fields(bits: int) -> np.ndarray:
    """Returns the numbers in each byte, side by side in one integer."""
    count = 8 // bits
    fields = np.arange(256)[:, None] >> np.arange(count) * bits & (1 << bits) - 1
    return fields.astype(np.uint8).view(f"<u{count}")[:, 0]
