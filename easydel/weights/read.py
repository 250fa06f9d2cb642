"""Bytes of local and remote files into memory: in one run, or in rows dealt out to several arrays."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import prod
from pathlib import Path

import numpy as np

from easydel.checkpoint import Tensor
from easydel.checkpoint.tensor import map_file
from easydel.errors import CheckpointError
from easydel.weights.expressions import Index
from easydel.weights.sources import TensorSource

# Casts go through it. With less, threads wait for the interpreter; more leaves the processor's cache.
SCRATCH_BYTES = 2 << 20
DEALT_BYTES = 512  # shorter pieces of rows are copied faster by numpy than by the system


@dataclass
class Reader:
    """The open resources of one load: files, mappings, and a scratch for each thread and use."""

    _handles: dict[Path, int] = field(default_factory=dict)
    _mappings: dict[Path, mmap.mmap] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _local: threading.local = field(default_factory=threading.local)

    def close(self) -> None:
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()

    def read(self, tensor: Tensor, offset: int, out: np.ndarray) -> None:
        """Reads bytes of the tensor's file from `offset` on, straight into `out`, which is contiguous."""
        view, done = memoryview(out.reshape(-1).view(np.uint8).data), 0
        if tensor.source is not None:
            tensor.source.read_into(offset, view)
            return
        handle = self._handle(tensor.file)
        while done < len(view):
            got = os.preadv(handle, [view[done:] if done else view], offset + done)
            if got == 0:
                raise shrunk(tensor)
            done += got

    def deal(self, tensor: Tensor, offset: int, outs: Sequence[np.ndarray]) -> bool:
        """Reads rows from `offset` on: the first columns into the rows of `outs[0]`, the next into `outs[1]`, ...

        Returns False, without a result, where the system cannot do that or numpy does it faster.
        """
        sizes = [out.shape[-1] * out.itemsize for out in outs]
        preadv, together = system_preadv(), most_pieces() // len(outs)
        if preadv is None or min(sizes) < DEALT_BYTES or not together:
            return False
        rows, row_bytes, handle = prod(outs[0].shape[:-1]), sum(sizes), self._handle(tensor.file)
        pieces = np.empty((rows, len(outs), 2), np.uintp)  # an array of struct iovec: address and length
        for column, (out, size) in enumerate(zip(outs, sizes, strict=True)):
            start, stride = out.ctypes.data, out.strides[-2]
            pieces[:, column, 0] = np.arange(start, start + rows * stride, stride, dtype=np.uintp)
            pieces[:, column, 1] = size
        address, step = pieces.ctypes.data, pieces.strides[0]
        for row in range(0, rows, together):
            count = min(together, rows - row)
            got = preadv(handle, address + row * step, count * len(outs), offset + row * row_bytes)
            if got != count * row_bytes:
                return False
        return True

    def mapped(self, tensor: Tensor, index: Index) -> np.ndarray:
        """Returns a slice of the mapped file, and asks the system to read it ahead."""
        if tensor.file not in self._mappings:
            self._mappings[tensor.file] = map_file(tensor.file)
        values = tensor.read(index, self._mappings[tensor.file])
        if values.nbytes:
            _read_ahead(self._handle(tensor.file), first_byte(tensor, index), values.nbytes)
        return values

    def scratch(self, shape: tuple[int, ...], dtype: np.dtype, use: str) -> np.ndarray:
        """Returns memory of this thread, the same at every call with that `use`."""
        size = prod(shape) * dtype.itemsize
        kept = getattr(self._local, use, None)
        if kept is None or kept.nbytes < size:
            kept = np.empty(max(size, SCRATCH_BYTES), np.uint8)
            setattr(self._local, use, kept)
        return kept[:size].view(dtype).reshape(shape)

    def at_hand(self, tensor: TensorSource) -> TensorSource:
        """Returns a tensor of another machine in memory, if any slice of it lies all over its file.

        Each thread keeps the last one: its slices are read one after the other.
        """
        if not getattr(tensor, "scattered", False):
            return tensor
        whole = getattr(self._local, "whole", None)
        if whole is None or whole[0] is not tensor:
            whole = self._local.whole = (tensor, tensor.at_hand())  # type: ignore[attr-defined]
        return whole[1]

    def _handle(self, file: Path) -> int:
        known = self._handles.get(file)
        if known is not None:
            return known
        with self._lock:
            if file not in self._handles:
                self._handles[file] = os.open(file, os.O_RDONLY)
            return self._handles[file]


def shrunk(tensor: Tensor) -> CheckpointError:
    return CheckpointError("the file shrank since its header was read", file=tensor.file, tensor=tensor.name)


@cache
def system_preadv() -> Callable[[int, int, int, int], int] | None:
    """Returns the system's preadv. Python's own wants a list of buffers, which takes longer to make than the read."""
    found = getattr(ctypes.CDLL(None), "preadv", None) if os.name == "posix" and sys.maxsize > 2**32 else None
    if found is not None:
        found.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong]
        found.restype = ctypes.c_ssize_t
    return found


@cache
def most_pieces() -> int:
    """Returns the number of pieces of memory that one call of preadv can fill."""
    return os.sysconf("SC_IOV_MAX")


def _read_ahead(handle: int, offset: int, size: int) -> None:
    """Starts reading bytes of a file in one go: page faults read at half the speed. Bytes in memory cost nothing."""
    if not hasattr(os, "posix_fadvise"):
        return
    try:  # asking for bytes in memory takes as long as mapping them: a single byte shows whether they are there
        os.preadv(handle, [bytearray(1)], offset, getattr(os, "RWF_NOWAIT", 0))
    except OSError:
        os.posix_fadvise(handle, offset, size, os.POSIX_FADV_WILLNEED)


def is_contiguous(tensor: Tensor, index: Index) -> bool:
    """True if the slice is one run of bytes: leading dimensions of one entry, a cut dimension, then whole ones."""
    expected = tensor.dtype.itemsize
    whole = True
    for part, dim, stride in reversed(list(zip(index, tensor.shape, tensor.strides, strict=True))):
        taken = part.stop - part.start
        if (part.step or 1) > 1 or (taken > 1 and (stride != expected or not whole)):
            return False
        whole = whole and taken == dim
        expected *= dim
    return True


def first_byte(tensor: Tensor, index: Index) -> int:
    return tensor.offset + sum(part.start * stride for part, stride in zip(index, tensor.strides, strict=True))


def bytes_of(tensor: TensorSource, elements: int) -> int:
    """Returns the bytes of the file for that many elements of a tensor; of encoded tensors, their share."""
    if isinstance(tensor, Tensor) and tensor.encoding is None:
        return elements * tensor.dtype.itemsize
    return elements * tensor.nbytes // max(prod(tensor.shape), 1)
