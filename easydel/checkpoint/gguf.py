"""The header of a GGUF file: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

Magic, version and two counts, the metadata as typed key/value pairs, one record per tensor, then aligned tensor data.
Read with bounds on everything: the `gguf` package's own reader believes the counts in the file.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from easydel.checkpoint.blocks import block_layout, can_decode
from easydel.checkpoint.problems import Problems, refuse_impostor
from easydel.checkpoint.tensor import MAX_NAME, ByteSource, Tensor, map_file, name_problem, row_major, shape_problem
from easydel.errors import CheckpointError, UnsupportedModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # version 1 had 32-bit counts and was in use for a week
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4  # GGML_MAX_DIMS
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
# Bounds far above the sizes of models: reading as much as they allow takes about a second.
MAX_TENSORS = 100_000
MAX_TEXTS = 1 << 21  # a vocabulary of 262,144 tokens has 800,000 with its merges
_MAX_PAIRS = 1 << 16
_MAX_NUMBERS = 1 << 22
_MAX_TEXT_BYTES = 64 << 20
_SMALLEST_PAIR = 8 + 4 + 1  # bytes: the length of the key, its type, one byte
_SMALLEST_TENSOR = 8 + 4 + 4 + 8  # bytes: the length of the name, number of dimensions, type, offset

REMOTE_STEP = 1 << 20  # bytes: a head without a vocabulary; with one it has up to some 16 MiB

PLAIN: dict[str, np.dtype] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype("<f8"),
    "I8": np.dtype("<i1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}


class Record(NamedTuple):
    """The file's entry for one tensor: `shape` in numpy's order, `offset` from the start of the data."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


def read_gguf(file: Path, source: ByteSource | None = None) -> tuple[list[Tensor], dict[str, Any]]:
    """Returns the tensors of one file in the order of their bytes, and its metadata.

    Metadata values are int, float, bool, str, list[str], or a numpy array for a list of numbers. If `source` is given,
    the bytes come from there, and `file` is only the name for errors.
    """
    cursor, metadata, records = _read_head(file) if source is None else _remote_head(file, source)
    alignment = _alignment(file, metadata)
    start = -(-cursor.position // alignment) * alignment
    _check_types(file, records)
    problems = Problems(file)
    tensors = [tensor for record in records if (tensor := _tensor(file, record, start, alignment, problems))]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    if not problems.found:  # a broken record would be reported a second time, as a hole
        _check_tiling(tensors, start, alignment, cursor.size, problems)
    problems.check(hint="the file is damaged or incomplete; download it again")
    return [replace(tensor, source=source) for tensor in tensors] if source else tensors, metadata


Head = tuple["_Cursor", dict[str, Any], list[Record]]


def _read_head(file: Path) -> Head:
    content = memoryview(map_file(file))
    return _parsed(_Cursor(file, content, len(content)))


def _remote_head(file: Path, source: ByteSource) -> Head:
    """Reads as much of the beginning of a file as its head takes, which only reading it tells."""
    size, step = source.size, REMOTE_STEP
    while True:
        content = bytearray(min(step, size))
        source.read_into(0, memoryview(content))
        try:
            return _parsed(_Cursor(file, memoryview(content), size))
        except _Beyond:
            step *= 4


def _parsed(cursor: _Cursor) -> Head:
    tensors, pairs = _read_start(cursor)
    metadata = _read_metadata(cursor, pairs)
    return cursor, metadata, _read_records(cursor, tensors)


class _Beyond(Exception):
    """The file goes on beyond the bytes that are here."""


def check_split(files: Sequence[Path], metadata: Mapping[str, Any], tensors: int) -> None:
    """Raises CheckpointError unless all parts made by gguf-split are given."""
    expected = metadata.get("split.tensors.count", tensors)
    if expected != tensors:
        raise CheckpointError(
            f"is one of {metadata.get('split.count')} parts; those given have {tensors} of {expected} tensors",
            file=files[0],
            hint="put all parts into one directory and pass that",
        )


@dataclass
class _Cursor:
    """A place in the `content` of a file of `size` bytes, or in its beginning."""

    file: Path
    content: memoryview
    size: int
    position: int = 0
    texts: int = 0

    def take(self, count: int, what: str) -> memoryview:
        if count > self.size - self.position:
            missing = self.position + count - self.size
            raise CheckpointError(f"is truncated within {what}: {missing} bytes are missing", file=self.file)
        if count > len(self.content) - self.position:
            raise _Beyond
        part = self.content[self.position : self.position + count]
        self.position += count
        return part

    def unsigned(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "little")

    def count(self, smallest: int, most: int, what: str) -> int:
        """Reads a 64-bit count, up to `most`, of entries of at least `smallest` bytes, which must fit into the file."""
        count = self.unsigned(8, what)
        if count * smallest > self.size - self.position:
            raise CheckpointError(f"{what}: {count} entries cannot fit into the rest of the file", file=self.file)
        if count > most:
            raise CheckpointError(f"{what}: {count} entries are more than {most}", file=self.file)
        return count

    def text(self, what: str) -> str:
        size = self.unsigned(8, what)
        self.texts += 1
        if self.texts > MAX_TEXTS or _MAX_TEXT_BYTES < size <= self.size:
            raise CheckpointError(f"{what}: more than {MAX_TEXTS} texts, or a text of {size} bytes", file=self.file)
        raw = self.take(size, what)
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{what} is not UTF-8: {error.reason}", file=self.file) from error


def _read_start(cursor: _Cursor) -> tuple[int, int]:
    file, head = cursor.file, bytes(cursor.content[:64])
    if head[:4] != MAGIC:
        refuse_impostor(file, head)
        raise CheckpointError(f"is not a GGUF file: it begins with {head[:4]!r}", file=file, hint="download it again")
    cursor.take(4, "its magic")
    version = cursor.unsigned(4, "its version")
    if version & 0xFFFF == 0:
        raise CheckpointError("is a big-endian GGUF file", file=file, hint="get the little-endian one")
    if version not in VERSIONS:
        raise CheckpointError(f"has GGUF version {version}, not one of {VERSIONS}", file=file)
    tensors = cursor.unsigned(8, "its counts")
    return tensors, cursor.count(_SMALLEST_PAIR, _MAX_PAIRS, "its metadata")


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for number in range(count):
        key = cursor.text(f"metadata key {number}")
        if key in metadata:
            raise CheckpointError(f"has the metadata key {key[:200]!r} twice", file=cursor.file)
        metadata[key] = _read_value(cursor, f"the value of {key[:200]!r}")
    return metadata


def _read_value(cursor: _Cursor, what: str) -> Any:
    kind = cursor.unsigned(4, what)
    if kind == _STRING:
        return cursor.text(what)
    if kind in _SCALARS:
        return _numbers(cursor, kind, 1, what)[0].item()
    if kind == _ARRAY:
        kind = cursor.unsigned(4, what)
        if kind == _STRING:
            return [cursor.text(what) for _ in range(cursor.count(8, MAX_TEXTS, what))]
        if kind in _SCALARS:
            count = cursor.count(np.dtype(_SCALARS[kind]).itemsize, _MAX_NUMBERS, what)
            return _numbers(cursor, kind, count, what)
        if kind == _ARRAY:
            raise CheckpointError(f"{what} is a list of lists, which is not supported", file=cursor.file)
    raise CheckpointError(f"{what} has the unknown type {kind}", file=cursor.file)


def _numbers(cursor: _Cursor, kind: int, count: int, what: str) -> np.ndarray:
    dtype = np.dtype(_SCALARS[kind])
    raw = np.frombuffer(cursor.take(count * dtype.itemsize, what), np.uint8)
    return raw != 0 if dtype == np.bool_ else raw.view(dtype).copy()


def _read_records(cursor: _Cursor, count: int) -> list[Record]:
    if count * _SMALLEST_TENSOR > cursor.size - cursor.position:
        raise CheckpointError(f"its {count} tensors cannot fit into the rest of the file", file=cursor.file)
    if count > MAX_TENSORS:
        raise CheckpointError(f"has {count} tensors, more than {MAX_TENSORS}", file=cursor.file)
    records: dict[str, Record] = {}
    for number in range(count):
        name = cursor.text(f"the name of tensor {number}")
        if name in records:
            raise CheckpointError("is in the file twice", file=cursor.file, tensor=name)
        records[name] = _read_record(cursor, name)
    return list(records.values())


def _read_record(cursor: _Cursor, name: str) -> Record:
    what = f"the record of tensor {name[:200]!r}"
    dims = cursor.unsigned(4, what)
    if dims > MAX_DIMS:
        raise CheckpointError(f"has {dims} dimensions, more than {MAX_DIMS}", file=cursor.file, tensor=name)
    *shape, kind, offset = struct.unpack(f"<{dims}QIQ", cursor.take(8 * dims + 12, what))
    return Record(name, tuple(reversed(shape)), kind, offset)


def _alignment(file: Path, metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise CheckpointError(f"general.alignment is {str(alignment)[:100]}, not a power of two", file=file)
    return alignment


def _tensor(file: Path, record: Record, start: int, alignment: int, problems: Problems) -> Tensor | None:
    name, shape, offset = record.name, record.shape, start + record.offset
    try:
        if problem := name_problem(name):
            raise ValueError(problem)
        kind = _type_name(record.type)
        dtype = PLAIN.get(kind)
        elements, size = (1, dtype.itemsize) if dtype else _blocks(kind, shape)
        if problem := shape_problem(shape, max(size, np.dtype(np.float32).itemsize)):
            raise ValueError(problem)
        if record.offset % alignment:
            raise ValueError(f"its offset {record.offset} is not a multiple of the alignment {alignment}")
    except ValueError as error:
        problems.add(str(error), name[:MAX_NAME])
        return None
    if dtype:
        return Tensor(name, shape, dtype, file, offset, row_major(shape, size))
    strides = row_major((*shape[:-1], shape[-1] // elements), size)
    return Tensor(name, shape, np.dtype(np.float32), file, offset, strides, encoding=kind)


def _check_types(file: Path, records: Sequence[Record]) -> None:
    """Raises UnsupportedModelError for types that the installed gguf package names and cannot decode."""
    from gguf.constants import GGMLQuantizationType

    kinds = {member.value: member.name for member in GGMLQuantizationType}
    unread = Counter(kind for record in records if (kind := kinds.get(record.type)) and not _is_readable(kind))
    if unread:
        told = ", ".join(f"{kind} ({count} tensors)" for kind, count in unread.items())
        raise UnsupportedModelError(
            f"is quantized in a way that the gguf package {version('gguf')} cannot decode: {told}",
            file=file,
            hint="take a file of another quantization, such as Q4_K_M or Q8_0, or try a newer gguf package",
        )


def _is_readable(kind: str) -> bool:
    return kind in PLAIN or can_decode(kind)


def _type_name(number: int) -> str:
    from gguf.constants import GGMLQuantizationType

    try:
        return GGMLQuantizationType(number).name
    except ValueError:
        raise ValueError(f"its type {number} is unknown to the installed gguf package; try a newer one") from None


def _blocks(kind: str, shape: tuple[int, ...]) -> tuple[int, int]:
    elements, size = block_layout(kind)
    if not shape or shape[-1] % elements:
        raise ValueError(f"its rows, of shape {list(shape)}, are not whole {kind} blocks of {elements}")
    return elements, size


def _check_tiling(tensors: Sequence[Tensor], start: int, alignment: int, size: int, problems: Problems) -> None:
    """Checks that each tensor begins where the one before ends, rounded up, and that the last one ends the file."""
    for tensor in tensors:
        if tensor.offset + tensor.nbytes > size:
            missing = tensor.offset + tensor.nbytes - size
            problems.add(f"the file is truncated: {missing} of its {tensor.nbytes} bytes are missing", tensor.name)
    end, before = start, ""
    for tensor in tensors:
        expected = start - (start - end) // alignment * alignment
        if tensor.offset < end:
            problems.add(f"overlaps tensor {before!r}", tensor.name)
        elif tensor.offset != expected:
            what = f"after tensor {before!r}" if before else "before it"
            problems.add(f"begins at byte {tensor.offset}, not {expected}: there is a hole {what}", tensor.name)
        if tensor.offset + tensor.nbytes > end:
            end, before = tensor.offset + tensor.nbytes, tensor.name
    if size > end and size - end != (start - end) % alignment:
        problems.add(f"{size - end} bytes follow the last tensor")
