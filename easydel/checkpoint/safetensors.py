"""The header of a safetensors file, checked in full: https://github.com/huggingface/safetensors#format

Eight bytes with the length of the header, the header as JSON, then the bytes of all tensors without a gap.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from easydel.checkpoint.problems import Problems, refuse_impostor
from easydel.checkpoint.strict import parse_json
from easydel.checkpoint.tensor import MAX_NAME, ByteSource, Tensor, name_problem, row_major, shape_problem
from easydel.errors import CheckpointError

MAX_HEADER_BYTES = 32 << 20  # the reference implementation takes 100 MB; real ones have 13 MB for 100,000 tensors
_MAX_ITEMS = 1_200_000  # the entry of a tensor of two dimensions has 8
LENGTH_BYTES = 8
KEYS = {"dtype", "shape", "data_offsets"}
Placed = tuple[int, int, Tensor]  # first and last (excluded) byte after the header, and the tensor
_REMOTE_HEAD = 64  # bytes: the length, and enough to recognize another format

DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype("<u1"),
    "U16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "U64": np.dtype("<u8"),
    "I8": np.dtype("<i1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "C64": np.dtype("<c8"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
NAMES: dict[np.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}


def read_safetensors(file: Path, source: ByteSource | None = None) -> tuple[list[Tensor], dict[str, str]]:
    """Returns the tensors of one file in the order of their bytes, and its `__metadata__`. Reads the header only.

    If `source` is given, the bytes come from there, and `file` is only the name for errors.
    """
    header, start, size = _header(file) if source is None else _remote_header(file, source)
    problems = Problems(file)
    metadata = _metadata(header.pop("__metadata__", {}), problems)
    found = [placed for name, entry in header.items() if (placed := _tensor(file, name, entry, start, problems))]
    found.sort(key=itemgetter(0, 1))
    if not problems.found:  # a broken entry would be reported a second time, as a hole
        _check_tiling(found, size - start, problems)
    problems.check(hint="the file is damaged or was not written by safetensors; get it again")
    tensors = [tensor for _, _, tensor in found]
    return [replace(tensor, source=source) for tensor in tensors] if source else tensors, metadata


def _header(file: Path) -> tuple[dict[str, Any], int, int]:
    try:
        with file.open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            head = handle.read(4096)
            length = int.from_bytes(head[:LENGTH_BYTES], "little")
            _check_length(file, head, length, size)
            handle.seek(LENGTH_BYTES)
            text = handle.read(length)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error}", file=file) from error
    return _json_object(file, text), LENGTH_BYTES + length, size


def _remote_header(file: Path, source: ByteSource) -> tuple[dict[str, Any], int, int]:
    size = source.size
    head = bytearray(min(_REMOTE_HEAD, size))
    source.read_into(0, memoryview(head))
    length = int.from_bytes(head[:LENGTH_BYTES], "little")
    _check_length(file, bytes(head), length, size)
    begun = head[LENGTH_BYTES : LENGTH_BYTES + length]
    rest = bytearray(length - len(begun))  # received once, as every byte of the file
    source.read_into(len(head), memoryview(rest))
    text = begun + rest
    return _json_object(file, bytes(text)), LENGTH_BYTES + length, size


def _check_length(file: Path, head: bytes, length: int, size: int) -> None:
    refuse_impostor(file, head)
    if size < LENGTH_BYTES:
        raise CheckpointError(f"is truncated: {size} bytes, less than the {LENGTH_BYTES} of a header length", file=file)
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"is not a safetensors file: its header would be {length} bytes, over the limit of {MAX_HEADER_BYTES}",
            file=file,
        )
    if LENGTH_BYTES + length > size:
        missing = LENGTH_BYTES + length - size
        raise CheckpointError(f"is truncated: {missing} bytes of its header are missing", file=file)


def _json_object(file: Path, text: bytes) -> dict[str, Any]:
    if text[:1].isspace():
        raise CheckpointError("its header is not valid: it does not begin with {", file=file)
    try:
        header, repeats = parse_json(text, _MAX_ITEMS)
    except ValueError as error:
        raise CheckpointError(f"its header is not valid JSON: {error}", file=file) from error
    if not isinstance(header, dict):
        raise CheckpointError("its header is not a JSON object", file=file)
    if repeats:
        inside, key, _ = repeats[0]
        owner = key if inside is header else next((name for name, entry in header.items() if entry is inside), None)
        keys = ", ".join(repr(repeat.key)[:200] for repeat in repeats[:20])
        raise CheckpointError(f"its header has keys twice: {keys}", file=file, tensor=owner)
    return header


def _metadata(entry: object, problems: Problems) -> dict[str, str]:
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        problems.add("__metadata__ is not a table of strings")
        return {}
    try:
        "".join((*entry, *entry.values())).encode()
    except UnicodeEncodeError:
        problems.add("__metadata__ is not valid Unicode")
    return entry


def _tensor(file: Path, name: str, entry: object, start: int, problems: Problems) -> Placed | None:
    if problem := name_problem(name):
        problems.add(problem, name[:MAX_NAME])
        return None
    if not isinstance(entry, dict) or entry.keys() != KEYS:
        problems.add("its entry does not have exactly dtype, shape and data_offsets", name)
        return None
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        problems.add(f"the dtype {str(entry['dtype'])[:100]} is not supported", name)
        return None
    shape, offsets = entry["shape"], entry["data_offsets"]
    integers = isinstance(shape, list) and set(map(type, shape)) <= {int}  # True and 1.0 would be found as 1
    problem, size, strides = _layout(tuple(shape), dtype) if integers else (shape_problem(shape, dtype.itemsize), 0, ())
    if problem := problem or _offsets_problem(shape, dtype, offsets, size):
        problems.add(problem, name)
        return None
    return offsets[0], offsets[1], Tensor(name, tuple(shape), dtype, file, start + offsets[0], strides)


@lru_cache(1024)  # a checkpoint has thousands of tensors, and few shapes
def _layout(shape: tuple[int, ...], dtype: np.dtype) -> tuple[str | None, int, tuple[int, ...]]:
    """Returns the problem of the shape (or None), the bytes that it takes, and its strides."""
    problem = shape_problem(shape, dtype.itemsize)
    return problem, math.prod(shape) * dtype.itemsize, () if problem else row_major(shape, dtype.itemsize)


def _offsets_problem(shape: list[int], dtype: np.dtype, offsets: object, expected: int) -> str | None:
    if not (isinstance(offsets, list) and len(offsets) == 2 and set(map(type, offsets)) == {int}):
        return f"data_offsets {str(offsets)[:100]} is not a pair of integers"
    begin, end = offsets
    if not 0 <= begin <= end:
        return f"data_offsets {offsets} do not make a range"
    if end - begin != expected:
        return f"shape {shape} of {dtype} takes {expected} bytes, data_offsets give it {end - begin}"
    return None


def _check_tiling(tensors: list[Placed], size: int, problems: Problems) -> None:
    """Checks that each of the `size` bytes after the header belongs to exactly one tensor."""
    position = 0
    for begin, end, tensor in tensors:
        if begin != position:
            kind = "a hole before it" if begin > position else "an overlap with the tensor before it"
            problems.add(f"{kind}: begins at byte {begin}, not {position}", tensor.name)
        position = max(position, end)
        if position > size:
            problems.add(f"the file is truncated: {position - size} bytes are missing", tensor.name)
            return
    if position < size:
        problems.add(f"{size - position} bytes follow the last tensor")
