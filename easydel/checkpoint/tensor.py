"""A named tensor in a file, of which any part can be read without reading the rest."""

from __future__ import annotations

import math
import mmap
import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Protocol

import ml_dtypes
import numpy as np

from easydel.checkpoint.blocks import block_layout, dequantize
from easydel.errors import CheckpointError

MAX_DIMS = 64  # NPY_MAXDIMS of numpy 2
MAX_NAME = 1000
_MAX_BYTES = 2**63 - 1  # numpy counts bytes in a signed 64-bit integer

_mappings: weakref.WeakValueDictionary[tuple[str, int, int, int, int], mmap.mmap] = weakref.WeakValueDictionary()
_mappings_lock = threading.Lock()


class ByteSource(Protocol):
    """A file that is not on this machine; threads may share it.

    `verdict` says whether all of it has the hash that its owner states, unless `leave_hash` said why not to compare it.
    """

    @property
    def size(self) -> int: ...
    def read_into(self, offset: int, out: memoryview) -> None: ...
    def leave_hash(self, reason: str) -> None: ...
    def verdict(self) -> str: ...


@dataclass(frozen=True)
class Tensor:
    """The place and type of one tensor in a file. None of its data is read before `read`.

    `dtype` is the dtype that `read` returns: an ml_dtypes type for bfloat16 and float8, float32 for block-quantized
    GGUF types. `strides` are in bytes, row-major unless a PyTorch file stores a view. `encoding` None means that the
    bytes are the array; otherwise it names the GGUF block type ("Q4_1"), and the last stride is from block to block.
    With a `source` the bytes come from there, and `file` is only the name for errors.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path
    offset: int
    strides: tuple[int, ...]
    encoding: str | None = None
    source: ByteSource | None = None

    @property
    def nbytes(self) -> int:
        """Bytes occupied in the file, from the first to the last that belongs to this tensor."""
        if 0 in self.shape:
            return 0
        if self.encoding is None:
            return extent(self.shape, self.strides, self.dtype.itemsize)
        elements, size = block_layout(self.encoding)
        return extent((*self.shape[:-1], self.shape[-1] // elements), self.strides, size)

    def read(self, index: tuple[slice, ...] = (), mapping: mmap.mmap | None = None) -> np.ndarray:
        """Returns the slice `index`, as numpy would take it; `mapping` is the mapped file, if the caller has it.

        It is a zero-copy, read-only view of the mapped file if the bytes are the array. Otherwise it is a new array,
        for which only the blocks that hold the slice are decoded. From a `source`, whole rows are fetched: those
        between the first and the last of the slice, for each entry of the dimensions before them.
        """
        if self.source is not None:
            return self._fetched(self.source, index)
        buffer = mapping or map_file(self.file)
        if self.offset + self.nbytes > len(buffer):
            raise CheckpointError("the file shrank since its header was read", file=self.file, tensor=self.name)
        if self.encoding is None:
            array = np.ndarray(self.shape, self.dtype, buffer, self.offset, self.strides)
            return array[(*index, ...)]  # without the dots a scalar would be copied
        return self._read_blocks(buffer, index, self.encoding)

    def _fetched(self, source: ByteSource, index: tuple[slice, ...]) -> np.ndarray:
        full = (*index, *[slice(None)] * (len(self.shape) - len(index)))
        taken = [range(size)[part] for size, part in zip(self.shape, full, strict=True)]
        counts = tuple(map(len, taken))
        if 0 in counts or not counts:
            found = np.empty(counts, self.dtype)
            source.read_into(self.offset, found.reshape(-1).view(np.uint8).data)
            return found
        cut = [dim for dim, size in enumerate(self.shape) if counts[dim] < size]
        row = min(max(cut, default=0), max(len(counts) - 2, 0))
        first, last = min(taken[row]), max(taken[row])
        found = np.empty((*counts[:row], last + 1 - first, *self.shape[row + 1 :]), self.dtype)
        for place, entry in zip(np.ndindex(counts[:row]), product(*taken[:row]), strict=True):
            start = sum(at * stride for at, stride in zip((*entry, first), self.strides, strict=False))
            source.read_into(self.offset + start, found[place].reshape(-1).view(np.uint8).data)
        return found[(*[slice(None)] * row, slice(None, None, taken[row].step), *full[row + 1 :])]

    def _read_blocks(self, buffer: mmap.mmap, index: tuple[slice, ...], encoding: str) -> np.ndarray:
        elements, size = block_layout(encoding)
        blocks_shape = (*self.shape[:-1], self.shape[-1] // elements, size)
        blocks = np.ndarray(blocks_shape, np.uint8, buffer, self.offset, (*self.strides, 1))
        full = (*index, *(slice(None) for _ in range(len(self.shape) - len(index))))
        wanted = range(self.shape[-1])[full[-1]]
        if not wanted:
            return np.empty((*blocks[full[:-1]].shape[:-2], 0), np.float32)
        first, last = min(wanted) // elements, max(wanted) // elements
        values = dequantize(blocks[(*full[:-1], slice(first, last + 1))], encoding)
        base = first * elements
        stop = wanted.stop - base  # may be before the first element when stepping backwards: that is no slice index
        return values[..., slice(wanted.start - base, stop if stop >= 0 else None, wanted.step)]


def row_major(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Returns the strides in bytes of a C-contiguous array."""
    strides, step = [], itemsize
    for dim in reversed(shape):
        strides.append(step)
        step *= max(dim, 1)
    return tuple(reversed(strides))


def extent(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> int:
    """Returns the bytes from the first to the last element of a strided array, both included."""
    if 0 in shape:
        return 0
    return sum((dim - 1) * stride for dim, stride in zip(shape, strides, strict=True)) + itemsize


def name_problem(name: str) -> str | None:
    """Returns the reason why no tensor can have this name, or None: it has to fit into messages and tables."""
    if len(name) > MAX_NAME:
        return f"its name has {len(name)} characters, more than {MAX_NAME}"
    if not name.isprintable():
        return "its name has control characters, or is not valid Unicode"
    return None


def shape_problem(shape: object, itemsize: int) -> str | None:
    """Returns the reason why numpy could not hold an array of this shape, or None."""
    if not isinstance(shape, list | tuple) or any(type(dim) is not int or dim < 0 for dim in shape):
        return f"the shape {str(shape)[:100]} is not a list of non-negative integers"
    if len(shape) > MAX_DIMS:
        return f"{len(shape)} dimensions are more than the {MAX_DIMS} that an array can have"
    if math.prod(dim for dim in shape if dim) * itemsize > _MAX_BYTES:
        return f"the shape {list(shape)} overflows 64-bit sizes"
    return None


def map_file(file: Path) -> mmap.mmap:
    """Returns the file as read-only memory: one mapping per file, released with the last array that views it.

    The key holds inode and time, so that a file replaced under the same name is mapped anew.
    """
    try:
        with file.open("rb") as handle:
            stat = os.fstat(handle.fileno())
            if stat.st_size == 0:
                raise CheckpointError("is empty", file=file, hint="download it again")
            key = (os.fspath(file), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
            with _mappings_lock:
                mapping = _mappings.get(key)
                if mapping is None:
                    mapping = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
                    _mappings[key] = mapping
                return mapping
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error}", file=file) from error


# Bits of positive infinity: larger ones, as an integer, are NaN. For types without infinity, the first NaN.
_INFINITY = {
    np.dtype(np.float64): 0x7FF0 << 48,
    np.dtype(np.float32): 0x7F80 << 16,
    np.dtype(np.float16): 0x7C00,
    np.dtype(ml_dtypes.bfloat16): 0x7F80,
    np.dtype(ml_dtypes.float8_e5m2): 0x7C,
    np.dtype(ml_dtypes.float8_e4m3fn): 0x7F,
}
_EXPONENTS = np.dtype(ml_dtypes.float8_e8m0fnu)  # powers of two alone, of which the highest code is NaN
_CACHED_BYTES = 1 << 20


def has_nonfinite(values: np.ndarray) -> bool:
    """True if any value is NaN or Inf; False for dtypes that are no floats.

    The highest bit of the exponent is set in numbers from 2 on, in Inf and in NaN. For most weights an OR of all bits
    rules these out, in one pass at the speed of the processor's cache. Otherwise two maxima over integers decide: sign
    and magnitude of a float compare like an int if positive, and like an unsigned one if negative.
    """
    if values.dtype == _EXPONENTS:
        return bool((values.view(np.uint8) == np.iinfo(np.uint8).max).any())
    if (limit := _INFINITY.get(values.dtype)) is None or not values.size:
        return False
    size, largest = values.dtype.itemsize, np.maximum.reduce
    flat = values.reshape(-1) if values.flags.c_contiguous else values
    unsigned = flat.view(f"u{size}")
    if not np.bitwise_or.reduce(unsigned, axis=None) >> (8 * size - 2) & 1:
        return False
    signed, negative = flat.view(f"i{size}"), limit | 1 << (8 * size - 1)
    if flat.ndim > 1:
        return bool(signed.max() >= limit or unsigned.max() >= negative)
    step = _CACHED_BYTES // size
    return any(
        largest(signed[start : start + step]) >= limit or largest(unsigned[start : start + step]) >= negative
        for start in range(0, flat.size, step)
    )
