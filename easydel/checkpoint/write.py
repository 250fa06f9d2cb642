"""Writes safetensors files that load by mapping alone, with one tensor in memory at a time."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from easydel.checkpoint.atomic import atomic_directory, recover_directory
from easydel.checkpoint.problems import Problems
from easydel.checkpoint.safetensors import LENGTH_BYTES, MAX_HEADER_BYTES, NAMES
from easydel.errors import CheckpointError
from easydel.threads import thread_count

__all__ = ["atomic_directory", "recover_directory", "write_safetensors"]

DATA_ALIGNMENT = 4096  # a page, so that the data can be mapped unchanged
TENSOR_ALIGNMENT = 64  # jax.device_put takes numpy memory of this alignment without a copy
MAX_THREADS = 8  # more do not make a disk faster
_CHUNK_BYTES = 16 << 20  # bytes of a strided array that are made contiguous at a time


class Entry(NamedTuple):
    """A tensor to write; `values` is called once, right before it is written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    values: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    directory: Path,
    tensors: Iterable[tuple[str, Sequence[int], np.dtype, Callable[[], np.ndarray]]],
    *,
    max_shard_bytes: int = 5 << 30,
    metadata: Mapping[str, str] | None = None,
    stem: str = "model",
) -> list[Path]:
    """Write (name, shape, dtype, values) as `stem`.safetensors, or as shards of at most `max_shard_bytes` with an
    index.

    Data starts at a multiple of 4096 in each file. The format allows no gaps, so tensors whose size is a multiple of 64
    bytes come first, in the given order, and all are aligned to that; the rest follow, the more aligned sizes first.

    An OSError, for instance of a full disk, passes to the `atomic_directory` around it, which knows the target.
    """
    entries = [Entry(name, tuple(shape), np.dtype(dtype), values) for name, shape, dtype, values in tensors]
    _check(directory, entries)
    shards = _shards(entries, max_shard_bytes)
    files = [directory / name for name in _names(stem, len(shards))]
    for file, shard in zip(files, shards, strict=True):
        _write_file(file, shard, metadata or {})
    if len(shards) > 1:
        files.insert(0, _write_index(directory / f"{stem}.safetensors.index.json", files, shards))
    return files


def _check(directory: Path, entries: Sequence[Entry]) -> None:
    problems = Problems(directory)
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen or entry.name == "__metadata__":
            problems.add("this name is taken", entry.name)
        if entry.dtype not in NAMES:
            problems.add(f"safetensors has no dtype {entry.dtype}", entry.name)
        seen.add(entry.name)
    problems.check()
    needed, free = sum(entry.nbytes for entry in entries), shutil.disk_usage(directory).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"needs {needed} bytes, and the disk has {free} left")


def _shards(entries: Sequence[Entry], limit: int) -> list[list[Entry]]:
    """Fills shards in the given order, with as many tensors as fit, but at least one."""
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.nbytes
    return [sorted(shard, key=lambda entry: -_alignment(entry.nbytes)) for shard in shards]


def _alignment(size: int) -> int:
    """Returns the largest power of two up to 64 that divides `size`: the alignment of the tensor after it."""
    return math.gcd(size, TENSOR_ALIGNMENT)


def _names(stem: str, count: int) -> list[str]:
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def _write_file(file: Path, entries: Sequence[Entry], metadata: Mapping[str, str]) -> None:
    """Writes the header, then every tensor at its place, by a few threads with one tensor in memory each."""
    header = _header(file, entries, metadata)
    ends = accumulate((entry.nbytes for entry in entries), initial=len(header))
    with file.open("xb", buffering=0) as handle:
        _write_at(handle.fileno(), 0, np.frombuffer(header, np.uint8))
        with ThreadPoolExecutor(thread_count(MAX_THREADS)) as pool:
            futures = [
                pool.submit(_write_values, handle.fileno(), start, entry)
                for start, entry in zip(ends, entries, strict=False)
            ]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        os.fsync(handle.fileno())


def _header(file: Path, entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, shape, dtype, _ in entries:
        end = position + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % DATA_ALIGNMENT)  # padding with spaces is part of the format
    if len(text) > MAX_HEADER_BYTES:
        raise CheckpointError(f"its header would take {len(text)} bytes, over {MAX_HEADER_BYTES}", file=file)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _write_values(handle: int, start: int, entry: Entry) -> None:
    array = entry.values()
    assert array.shape == entry.shape, (entry.name, array.shape, entry.shape)
    assert array.dtype == entry.dtype, (entry.name, array.dtype, entry.dtype)
    if array.flags.c_contiguous:
        _write_at(handle, start, array)
        return
    rows = max(1, _CHUNK_BYTES * len(array) // array.nbytes)
    for first in range(0, len(array), rows):
        part = np.ascontiguousarray(array[first : first + rows])
        _write_at(handle, start, part)
        start += part.nbytes


def _write_at(handle: int, start: int, array: np.ndarray) -> None:
    view, done = memoryview(array.reshape(-1).view(np.uint8).data), 0
    while done < len(view):
        done += os.pwrite(handle, view[done:], start + done)


def _write_index(index: Path, files: Sequence[Path], shards: Sequence[Sequence[Entry]]) -> Path:
    weight_map = {entry.name: file.name for file, shard in zip(files, shards, strict=True) for entry in shard}
    total = sum(entry.nbytes for shard in shards for entry in shard)
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n")
    return index
