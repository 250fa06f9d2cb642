"""Fills memory with parts of checkpoint tensors: the inner loops of loading.

Contiguous bytes are read straight to their place. Casts go through a small scratch that stays in the processor's cache.
Strided parts (columns) are copied out of the mapped file. A remote file is received in runs of bytes: if a row's
columns are a long run, that run of each row; otherwise whole rows, from which the columns are picked.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from easydel.checkpoint import Tensor
from easydel.checkpoint.problems import Problems
from easydel.checkpoint.tensor import has_nonfinite, row_major
from easydel.forms import Form
from easydel.quantize import rounded
from easydel.weights.arena import ALIGNMENT
from easydel.weights.blocks import blocks_of, depth_of, memoryless, within
from easydel.weights.casts import assign, too_large
from easydel.weights.expressions import Copy, Index, Reshape, Rows, chain, source_names
from easydel.weights.plan import Plan
from easydel.weights.read import SCRATCH_BYTES, Reader, bytes_of, first_byte, is_contiguous
from easydel.weights.sources import FLOAT32, TensorSource

# Bytes of rows that one operation or one request covers: with less, threads wait for the interpreter, and a round trip
# costs more than the transfer.
ROWS_BYTES = 4 << 20
RUN_BYTES = 64 << 10  # shorter runs are not worth a request each
Finite = Literal["all", "read"]
Out = tuple[Index, np.ndarray]  # columns, if it has not all of them, and memory


@dataclass
class Filler:
    """Fills memory for one load; counts the bytes that came out of files, and remembers tensors with NaN or Inf."""

    plan: Plan
    finite: Finite | None = "all"
    bytes_read: int = 0
    bytes_mapped: int = 0
    reader: Reader = field(default_factory=Reader)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _nonfinite: dict[str, Path] = field(default_factory=dict)

    def fill(self, path: str, index: Index, out: np.ndarray, *, checked: bool = True) -> None:
        """Reads slice `index` of a parameter into `out`, in the dtype of `out`.

        Unless `checked`, NaN and Inf may go unnoticed: the caller looks for them.
        """
        for copy in self._copies(path, index, out):
            self._copy(path, copy, checked)

    def fill_rounded(self, path: str, form: Form, rows: Index, codes: Sequence[Out], scales: Sequence[Out]) -> None:
        """Reads rows of a parameter, quantized to `form`; each out gets some columns of the codes or of the scales."""
        width = self.plan.shapes[path][-1]
        # a row of a transposed tensor is spread all over it: fetched once, rather than once for every block
        row_bytes = 0 if self.fetched_whole(path) else width * 4
        for block, picked in blocks_of(rows, row_bytes, ROWS_BYTES):
            shape = tuple(part.stop - part.start for part in block)
            scratch = self.reader.scratch((*shape, width), np.dtype(np.float32), "rows")
            self.fill(path, (*block, slice(0, width)), scratch, checked=False)
            values, found = rounded(scratch, form)
            for numbers, outs in ((values, codes), (found, scales)):
                for columns, out in outs:
                    np.copyto(out[picked], numbers[(..., *columns)], casting="unsafe")
            if self.finite is not None and not np.isfinite(found).all():
                self.fill(path, (*block, slice(0, width)), scratch)  # a second time, to find the tensors' names

    def fill_shared(self, path: str, parts: Sequence[tuple[Index, np.ndarray]]) -> None:
        """Fills parts of a parameter that lie in the same rows of the file, and reads the bytes they span once.

        Of a file with rows of 8 numbers, two devices hold columns 0:4 and 4:8 of rows 0 and 1:
            fill_shared(path, [((0:2, 0:4), a), ((0:2, 4:8), b)])
        reads each row once, in one piece, and puts its halves into `a` and `b`. Where that cannot be done straight from
        the file (a transpose, packed numbers, bytes of another machine), the box around all parts is filled block by
        block, and every part takes its share of each block.
        """
        if not self.plan.is_transposed(path) and self._plain(path):
            sources = (self._copies(path, index, out) for index, out in parts)
            for columns in zip(*sources, strict=True):
                self._deal(path, columns)
            return
        dims = zip(*(index for index, _ in parts), strict=True)
        box = tuple(slice(min(part.start for part in dim), max(part.stop for part in dim)) for dim in dims)
        order = [*range(len(box))]
        if self.plan.is_transposed(path):
            order[-2:] = reversed(order[-2:])
        dtype, width = parts[0][1].dtype, box[order[-1]].stop - box[order[-1]].start
        for block, _ in blocks_of(tuple(box[dim] for dim in order[:-1]), width * dtype.itemsize, ROWS_BYTES):
            window = list(box)
            for dim, rows in zip(order[:-1], block, strict=True):
                window[dim] = rows
            scratch = self.reader.scratch(tuple(part.stop - part.start for part in window), dtype, "rows")
            self.fill(path, tuple(window), scratch)
            for index, out in parts:
                common = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(index, window, strict=True)]
                if all(part.start < part.stop for part in common):
                    out[within(common, index)] = scratch[within(common, window)]

    @cached_property
    def remote(self) -> bool:
        """True if the bytes come from another machine."""
        return any(isinstance(tensor, Tensor) and tensor.source is not None for tensor in self.plan.tensors.values())

    def fetched_whole(self, path: str) -> bool:
        """True if any few rows of the parameter lie all over a file of another machine."""
        return self.remote and (self.plan.is_transposed(path) or self.plan.is_scattered(path))

    def map(self, path: str, index: Index, dtype: np.dtype) -> np.ndarray | None:
        """Returns the slice of the mapped file if it can be used there, and asks the system to read it ahead."""
        copy = mappable(self.plan, path, index, dtype)
        if copy is None:
            return None
        tensor = self.plan.tensors[copy.name]
        assert isinstance(tensor, Tensor)
        values = self.reader.mapped(tensor, copy.index)
        self.bytes_mapped += values.nbytes
        return values

    def check_mapped(self, path: str, index: Index, values: np.ndarray) -> None:
        """Remembers the tensor of a mapped slice if there is NaN or Inf in it."""
        copy = next(self.plan.expressions[path].copies(index, memoryless(values.shape)))
        self._check(self.plan.tensors[copy.name], copy.name, values)

    def check_finite(self) -> None:
        """Raises CheckpointError with every tensor in which NaN or Inf was met."""
        if self._nonfinite:
            problems = Problems(next(iter(self._nonfinite.values())))
            for name in sorted(self._nonfinite):
                problems.add("has weights that are NaN or Inf", name)
            problems.check(hint="allow_nonfinite=True loads them all the same")

    def _check(self, tensor: TensorSource, name: str, values: np.ndarray) -> None:
        if self.finite is not None and has_nonfinite(values):
            with self._lock:
                self._nonfinite[name] = tensor.file

    def _check_cast(self, path: str, tensor: Tensor, stored: np.ndarray, out: np.ndarray) -> None:
        """Checks `out`, which was made from `stored`. Raises CheckpointError if only the cast made it infinite."""
        if self.finite is None:
            return
        narrower = out.itemsize < stored.itemsize
        if narrower and has_nonfinite(out) and not has_nonfinite(stored):
            raise too_large(out.dtype, path, tensor.file)
        self._check(tensor, tensor.name, out if narrower else stored)

    def _copies(self, path: str, index: Index, out: np.ndarray) -> Iterator[Copy]:
        """Yields copies that can be read: where the tensor's bytes are the array, skipped rows need a read each."""
        copies = self.plan.expressions[path].copies(index, out)
        return self._in_runs(copies) if path in self._picked else copies

    @cached_property
    def _picked(self) -> set[str]:
        """Paths of parameters made of selected rows of a tensor, which may be equally far apart."""
        return {
            path for path, whole in self.plan.expressions.items() if any(isinstance(one, Rows) for one in chain(whole))
        }

    def _in_runs(self, copies: Iterator[Copy]) -> Iterator[Copy]:
        for copy in copies:
            tensor = self.plan.tensors[copy.name]
            plain = isinstance(tensor, Tensor) and tensor.encoding is None
            yield from copy.in_runs(len(copy.index) - 1 if plain else 0)

    def _copy(self, path: str, copy: Copy, checked: bool) -> None:
        tensor, out = self.plan.tensors[copy.name], copy.out
        tensor = self.reader.at_hand(tensor) if self.remote else tensor
        if isinstance(tensor, Tensor) and tensor.source is not None and not is_contiguous(tensor, copy.index):
            self._copy_rows(path, tensor, copy)
            return
        with self._lock:
            self.bytes_read += bytes_of(tensor, out.size)
        if not isinstance(tensor, Tensor) or tensor.encoding is not None:
            self._decode(path, tensor, copy)
        elif not is_contiguous(tensor, copy.index):
            assign(out, tensor.read(copy.index), path)
            self._check(tensor, copy.name, out)
        elif tensor.dtype == out.dtype and out.flags.c_contiguous:
            self._read_checked(tensor, first_byte(tensor, copy.index), out)
        else:
            self._cast(path, tensor, copy, checked)

    def _decode(self, path: str, tensor: TensorSource, copy: Copy) -> None:
        """Computes values from the bytes, in steps that fit the processor's cache; from another machine, at once."""
        room = sys.maxsize if self.remote else ROWS_BYTES
        depth, below = depth_of(copy.out.shape, FLOAT32.itemsize, room)
        for block, picked in blocks_of(copy.index[:depth], below, room):
            out = copy.out[*picked, ...]
            assign(out, tensor.read((*block, *copy.index[depth:])), path)
            self._check(tensor, copy.name, out)

    def _deal(self, path: str, copies: Sequence[Copy]) -> None:
        """Reads whole rows of a local tensor into copies that each take some of its columns."""
        tensor = self.plan.tensors[copies[0].name]
        assert isinstance(tensor, Tensor)
        *leading, _ = copies[0].index
        row = (slice(0, tensor.shape[-1]),)
        ordered = sorted(copies, key=lambda copy: copy.index[-1].start)
        straight, row_bytes = tensor.dtype == copies[0].out.dtype, tensor.shape[-1] * tensor.dtype.itemsize
        for block, picked in blocks_of(tuple(leading), row_bytes, ROWS_BYTES if straight else SCRATCH_BYTES):
            start, outs = first_byte(tensor, (*block, *row)), [copy.out[picked] for copy in ordered]
            with self._lock:
                self.bytes_read += sum(out.size for out in outs) * tensor.dtype.itemsize
            if straight and self.reader.deal(tensor, start, outs):
                for out in outs:
                    self._check(tensor, tensor.name, out)
                continue
            shape = (*(rows.stop - rows.start for rows in block), tensor.shape[-1])
            scratch = self.reader.scratch(shape, tensor.dtype, "bytes")
            self.reader.read(tensor, start, scratch)
            for copy, out in zip(ordered, outs, strict=True):
                columns = scratch[..., copy.index[-1]]
                assign(out, columns, path)
                self._check_cast(path, tensor, columns, out)

    def _plain(self, path: str) -> bool:
        """True if a parameter's tensors are in local files, row after row, and rows of them are rows of the parameter.

        That excludes vectors (biases), which have no rows; tables of fused biases, of which the parameter has some
        columns; and other shapes, where rows may be cut differently.
        """
        tensors = (self.plan.tensors[name] for name in source_names({path: self.plan.expressions[path]}))
        forms = list(chain(self.plan.expressions[path]))
        picked = any(isinstance(one, Rows) and one.dim == -1 for one in forms)
        cut = any(isinstance(one, Reshape) and one.theirs[-1:] != one.ours[-1:] for one in forms)
        return not (picked or cut) and all(
            isinstance(tensor, Tensor)
            and len(tensor.shape) > 1
            and tensor.encoding is None
            and tensor.source is None
            and tensor.strides == row_major(tensor.shape, tensor.dtype.itemsize)
            for tensor in tensors
        )

    def _copy_rows(self, path: str, tensor: Tensor, copy: Copy) -> None:
        """Reads columns of a remote tensor: their run of each row if that is long, else whole rows to pick from."""
        *leading, columns = copy.index
        run = (columns.stop - columns.start) * tensor.dtype.itemsize
        short = run < RUN_BYTES or (columns.step or 1) > 1
        taken = slice(0, tensor.shape[-1]) if short else columns
        whole = taken == slice(0, tensor.shape[-1])
        row_bytes = tensor.shape[-1] * tensor.dtype.itemsize if whole else ROWS_BYTES
        for block, picked in blocks_of(tuple(leading), row_bytes, ROWS_BYTES):
            shape = (*(rows.stop - rows.start for rows in block), taken.stop - taken.start)
            scratch = self.reader.scratch(shape, tensor.dtype, "bytes")
            with self._lock:
                self.bytes_read += scratch.nbytes
            self.reader.read(tensor, first_byte(tensor, (*block, taken)), scratch)
            out = copy.out[picked]
            assign(out, scratch[..., columns] if short else scratch, path)
            self._check(tensor, copy.name, out)

    def _cast(self, path: str, tensor: Tensor, copy: Copy, checked: bool) -> None:
        room = SCRATCH_BYTES if tensor.source is None else ROWS_BYTES
        depth, below = depth_of(copy.out.shape, tensor.dtype.itemsize, room)
        for block, picked in blocks_of(copy.index[:depth], below, room):
            out = copy.out[*picked, ...]  # a view, even of a single number
            scratch = self.reader.scratch(out.shape, tensor.dtype, "bytes")
            self.reader.read(tensor, first_byte(tensor, (*block, *copy.index[depth:])), scratch)
            assign(out, scratch, path)
            if checked:
                self._check_cast(path, tensor, scratch, out)

    def _read_checked(self, tensor: Tensor, offset: int, out: np.ndarray) -> None:
        """Reads as `_read`, in steps that are checked while they are still in the processor's cache."""
        flat = out.reshape(-1)
        step = ROWS_BYTES // flat.itemsize if self.finite and tensor.source is None else max(flat.size, 1)
        for start in range(0, flat.size, step):
            values = flat[start : start + step]
            self.reader.read(tensor, offset + start * flat.itemsize, values)
            self._check(tensor, tensor.name, values)


def mappable(plan: Plan, path: str, index: Index, dtype: np.dtype) -> Copy | None:
    """Returns the one copy that a slice consists of, if JAX can use it where it lies in the file.

    That takes the same dtype, alignment, and contiguous, unaltered bytes.
    """
    shape = tuple(part.stop - part.start for part in index)
    copies = list(plan.expressions[path].copies(index, memoryless(shape)))
    if len(copies) != 1 or copies[0].out.shape != shape or copies[0].out.strides != memoryless(shape).strides:
        return None
    tensor: TensorSource = plan.tensors[copies[0].name]
    if not isinstance(tensor, Tensor) or tensor.encoding or tensor.source is not None or tensor.dtype != dtype:
        return None
    aligned = first_byte(tensor, copies[0].index) % ALIGNMENT == 0
    return copies[0] if aligned and is_contiguous(tensor, copies[0].index) else None
