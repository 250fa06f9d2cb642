"""Files of examples: what each line, entry or row of a file holds, and where it stands.

A .jsonl, .json, .csv, .tsv or .parquet file holds a record for each example; any other file is one text.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from importlib import import_module
from io import StringIO
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from easydel.errors import ArgumentError

# What to install for packages that most trainings do without.
WANTED = {"pyarrow": '".[parquet]"', "matplotlib": '".[plot]"', "tensorboard": "tensorboard", "wandb": "wandb"}
Found = tuple[str, Any]  # where it stands ("line 3"), and a record (a dict) or a text


def needed(package: str) -> Any:
    """Imports an optional package, which is slow. ArgumentError says how to install it."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package.partition(".")[0]:
            raise
        wanted = WANTED.get(package.partition(".")[0], '".[train]"')
        raise ArgumentError(f"this needs {error.name}, which is not installed", hint=f"pip install {wanted}") from None


def records(file: str | PathLike[str]) -> Iterator[Found]:
    """Yields what `file` holds, in its order. Text is UTF-8, with or without a byte order mark."""
    path = _path(file)
    reader = READERS.get(path.suffix.lower())
    yield from ([("the file", _text(path))] if reader is None else reader(path))


def documents(file: str | PathLike[str]) -> Iterator[str]:
    """Yields the "text" of each record of a file, or the whole of a file that has no records. Both are UTF-8."""
    for where, found in records(file):
        text = found.get("text") if isinstance(found, dict) else found
        if not isinstance(text, str):
            raise ArgumentError(f'{where} has no "text"', file=_path(file))
        yield text


def _path(file: str | PathLike[str]) -> Path:
    try:
        return Path(fspath(file))
    except TypeError:
        raise ArgumentError(f"a file is a path, not {file!r:.80}") from None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")  # many editors on Windows begin a file with a byte order mark
    except (OSError, ValueError) as error:  # no such file, not UTF-8, or a name that no file can have
        raise ArgumentError(f"cannot be read: {error}"[:300], file=str(file)[:300]) from None


def _lines(file: Path) -> Iterator[Found]:
    # not splitlines: JSON strings may hold U+2028 and other characters at which it would cut them
    for number, line in enumerate(_text(file).split("\n"), 1):
        if line.strip():
            yield f"line {number}", _object(line, f"line {number}", file)


def _object(line: str, where: str, file: Path) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ArgumentError(f"{where} is no JSON object", file=file)
    return found


def _json(file: Path) -> Iterator[Found]:
    """Reads one JSON list of records or texts, one record, or lines with a record each: all are called .json."""
    text = _text(file)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        first = text.lstrip().partition("\n")[0]
        if not first.rstrip().endswith("}"):
            raise ArgumentError(f"is not readable as JSON: {error}", file=file) from None
        yield from _lines(file)
        return
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list):
        raise ArgumentError(f"holds {found!r:.80} where a list of examples belongs", file=file)
    for number, entry in enumerate(found, 1):
        if not isinstance(entry, dict | str):
            raise ArgumentError(f"entry {number} is no JSON object", file=file)
        yield f"entry {number}", entry


def _table(delimiter: str) -> Callable[[Path], Iterator[Found]]:
    def read(file: Path) -> Iterator[Found]:
        csv.field_size_limit(1 << 30)  # its own limit of 128 KB is shorter than documents
        rows = csv.DictReader(StringIO(_text(file), newline=""), delimiter=delimiter, strict=True)
        try:
            for row in rows:
                if None in row or None in row.values():
                    raise csv.Error(f"it has not the {len(rows.fieldnames or ())} columns of the first line")
                yield f"line {rows.line_num}", {key: value for key, value in row.items() if value != ""}
        except csv.Error as error:
            raise ArgumentError(f"line {rows.line_num} cannot be read: {error}", file=file) from None

    return read


def _parquet(file: Path) -> Iterator[Found]:
    parquet = needed("pyarrow.parquet")
    number = 0
    try:
        with parquet.ParquetFile(file) as rows:
            for batch in rows.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (OSError, ValueError) as error:  # pyarrow's own errors are among them
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"cannot be read: {error}"[:300], file=file) from None


READERS: dict[str, Callable[[Path], Iterator[Found]]] = {
    ".jsonl": _lines,
    ".ndjson": _lines,
    ".json": _json,
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".parquet": _parquet,
}
