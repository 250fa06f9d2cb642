"""The zip archive around a state dict: uncompressed records, one after the other, with nothing between them.

https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT: before each record lies its own header (4.3.7), after it
perhaps a descriptor (4.3.9), and the directory of all records (4.3.12) is at the end. Directory and headers must agree:
readers differ in which of the two they trust, and a file must not mean two things.
"""

from __future__ import annotations

import mmap
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from easydel.checkpoint.pickled import MAX_PICKLE_BYTES
from easydel.checkpoint.problems import Problems
from easydel.checkpoint.tensor import map_file
from easydel.errors import CheckpointError

Span = tuple[int, int]  # first byte in the file, number of bytes
_HEADER = struct.Struct("<4s5H3I2H")
_DESCRIPTORS = {16: struct.Struct("<4s3I"), 24: struct.Struct("<4sI2Q")}
_ENCRYPTED, _DESCRIBED = 1, 8  # flags
_ENCRYPTIONS = _ENCRYPTED | 1 << 6 | 1 << 13
_MAX_RECORDS = 200_000
_SMALL = ("data.pkl", "byteorder")


def read_archive(file: Path) -> dict[str, Span]:
    """Returns the bytes of each record, by name below the archive's root folder. CheckpointError if it is unsound."""
    try:
        with zipfile.ZipFile(file) as archive:
            infos, end = archive.infolist(), archive.start_dir
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        ValueError,
        OSError,
        EOFError,
        OverflowError,
        struct.error,
    ) as error:
        raise CheckpointError(f"is a truncated or damaged zip archive: {error}", file=file) from error
    if len(infos) > _MAX_RECORDS:
        raise CheckpointError(f"has {len(infos)} records, more than {_MAX_RECORDS}", file=file)
    records = _records(file, infos)
    spans = _spans(file, records, end)
    _check_small(file, records, spans)
    return spans


def _records(file: Path, infos: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    roots = {info.filename.removesuffix("/data.pkl") for info in infos if info.filename.endswith("/data.pkl")}
    if len(roots) != 1:
        raise CheckpointError("is a zip archive without exactly one data.pkl: not a file of torch.save", file=file)
    root = roots.pop()
    records: dict[str, zipfile.ZipInfo] = {}
    problems = Problems(file)
    for info in infos:
        name = info.filename.removeprefix(f"{root}/")
        if problem := _record_problem(info) or (name in records and "is there twice"):
            problems.add(f"the record {name[:200]!r} {problem}")
        records[name] = info
    if any(name == "constants.pkl" or name.startswith("code/") for name in records):
        raise CheckpointError("is a TorchScript archive, not a state dict", file=file, hint="save model.state_dict()")
    problems.check()
    return records


def _record_problem(info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & _ENCRYPTIONS:
        return "is encrypted"
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        return "is compressed; torch.save stores records as they are"
    if info.volume:
        return "is on another disk"
    path = PurePosixPath(info.filename)
    if path.is_absolute() or ".." in path.parts:
        return "has a name that leads out of the archive"
    return None


def _spans(file: Path, records: Mapping[str, zipfile.ZipInfo], end: int) -> dict[str, Span]:
    """Checks that the records tile the file up to `end`, where the directory begins. Returns their bytes."""
    content = map_file(file)
    spans: dict[str, Span] = {}
    position = 0
    for name, info in sorted(records.items(), key=lambda item: item[1].header_offset):
        if info.header_offset != position:
            kind = "overlaps what is before it" if info.header_offset < position else "has other bytes before it"
            raise CheckpointError(f"the record {name[:200]!r} {kind}", file=file)
        start = _data_start(file, content, info)
        if start + info.file_size > end:
            raise CheckpointError(f"is truncated within the record {name[:200]!r}", file=file)
        spans[name] = (start, info.file_size)
        position = _record_end(content, info, start + info.file_size)
    if position != end:
        raise CheckpointError("its directory is not right behind its records", file=file)
    return spans


def _data_start(file: Path, content: mmap.mmap, info: zipfile.ZipInfo) -> int:
    """Returns the first byte after the record's own header, including the header's name and padding."""
    at = info.header_offset
    raw = content[at : at + _HEADER.size]
    if len(raw) < _HEADER.size or raw[:4] != b"PK\x03\x04":
        raise CheckpointError(f"the record {info.filename[:200]!r} has no header of its own", file=file)
    _, _, flags, method, _, _, crc, packed, size, name_bytes, extra_bytes = _HEADER.unpack(raw)
    start = at + _HEADER.size + name_bytes + extra_bytes
    name = content[at + _HEADER.size : at + _HEADER.size + name_bytes]
    stated = {info.CRC, info.file_size, 0, 0xFFFFFFFF} if flags & _DESCRIBED else {info.CRC, info.file_size, 0xFFFFFFFF}
    same_name = name in (info.orig_filename.encode("utf-8", "replace"), info.orig_filename.encode("cp437", "replace"))
    if (
        flags != info.flag_bits
        or method != info.compress_type
        or not same_name
        or not stated.issuperset((crc, packed, size))
    ):
        raise CheckpointError(f"the record {info.filename[:200]!r} is another in the archive's directory", file=file)
    return start


def _record_end(content: mmap.mmap, info: zipfile.ZipInfo, end: int) -> int:
    """Returns `end` of the bytes, or of the descriptor that follows them if the record says so."""
    if info.flag_bits & _DESCRIBED:
        for size, form in _DESCRIPTORS.items():
            raw = content[end : end + size]
            if len(raw) == size and form.unpack(raw) == (b"PK\x07\x08", info.CRC, info.file_size, info.file_size):
                return end + size
    return end


def _check_small(file: Path, records: Mapping[str, zipfile.ZipInfo], spans: Mapping[str, Span]) -> None:
    """Checks size and checksum of records that are read at once; torch.save writes 0 in place of a checksum."""
    content = map_file(file)
    for name in filter(spans.__contains__, _SMALL):
        start, size = spans[name]
        if size > MAX_PICKLE_BYTES:
            raise CheckpointError(f"its {name} has {size} bytes, over {MAX_PICKLE_BYTES}", file=file)
        text = content[start : start + size]
        if records[name].CRC not in (0, zlib.crc32(text)):
            raise CheckpointError(f"is damaged: the checksum of its {name} is wrong", file=file)
        if name == "byteorder" and text != b"little":
            raise CheckpointError(f"its bytes are in {text[:20]!r} order, not little-endian", file=file)
