"""Finds the files of a directory that hold the weights."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from easydel.checkpoint.atomic import recover_directory
from easydel.checkpoint.problems import Problems
from easydel.checkpoint.strict import parse_json
from easydel.errors import CheckpointError

INDEX_SUFFIX = ".index.json"
OWN = "easydel"  # what files of `save_pretrained` are called: under its own names, transformers would take any tensors
PREFERENCE = (  # as transformers prefers them, then ours
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    f"{OWN}.safetensors",
    f"{OWN}.safetensors.index.json",
)
_GGUF_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")  # the names that llama.cpp's gguf-split gives
_MAX_INDEX_BYTES = 32 << 20  # the index of 200,000 tensors has 22 MB
_MAX_ENTRIES = 400_000
_MAX_SHARDS = 10_000
_MAX_NAME_BYTES = 255  # NAME_MAX of every usual file system


def find_checkpoint(directory: Path, *, follow_links: bool = False) -> list[Path]:
    """Returns the weight files of a local directory, or of the given file, for `open_checkpoint`.

    The first that exists of model.safetensors, its index with all shards, pytorch_model.bin, its index with all shards,
    the same of easydel.safetensors, one GGUF file (or all parts of one). An index comes before its shards. To a part of
    a GGUF file that was split belong the other parts. With `follow_links` they may be links out of the directory.
    """
    directory = Path(directory)
    recover_directory(directory)
    if directory.is_file():
        return _with_shards(directory)
    if not directory.is_dir():
        there = os.path.lexists(directory)
        problem = "is a dangling link, or not a regular file" if there else "no such file or directory"
        raise CheckpointError(problem, file=directory)
    for name in PREFERENCE:
        if os.path.lexists(directory / name):
            files = _with_shards(directory / name)
            break
    else:
        files = _gguf_files(directory)
    if not follow_links:
        check_links(directory, files)
    return files


def read_index(file: Path, *, local: bool = True) -> dict[str, str]:
    """Returns an index's table from tensor to shard. Shards are plain names, if `local` of existing files."""
    try:
        if file.stat().st_size > _MAX_INDEX_BYTES:
            raise CheckpointError(f"is larger than {_MAX_INDEX_BYTES} bytes", file=file)
        index, repeats = parse_json(file.read_bytes(), _MAX_ENTRIES)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error}", file=file) from error
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"is not valid JSON: {error}", file=file) from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("has no weight_map with entries", file=file)
    problems = Problems(file)
    for inside, key, _ in repeats:
        problems.add(f"has the key {key[:200]!r} twice", key if inside is weight_map else None)
    _check_shards(file, weight_map, problems, local=local)
    problems.check(hint="get the whole checkpoint again")
    return weight_map


def _check_shards(file: Path, weight_map: Mapping[str, Any], problems: Problems, *, local: bool) -> None:
    shards = {repr(shard): (shard, name) for name, shard in weight_map.items()}
    if len(shards) > _MAX_SHARDS:
        raise CheckpointError(f"names {len(shards)} shards, more than {_MAX_SHARDS}", file=file)
    for shown, (shard, name) in shards.items():
        if not isinstance(shard, str) or not is_plain_name(shard):
            problems.add(f"the shard {shown[:200]} is not a plain file name", name)
        elif local and not (file.parent / shard).is_file():
            problems.add(f"the shard {shown[:300]} is missing, or not a regular file", name)


def is_plain_name(name: str) -> bool:
    """True if `name` can only be a file right inside the directory, on any system."""
    fits = 0 < len(name.encode("utf-8", "surrogatepass")) <= _MAX_NAME_BYTES
    return fits and name not in (".", "..") and not any(char in "/\\:\0" for char in name)


def _with_shards(file: Path) -> list[Path]:
    if not file.is_file():
        raise CheckpointError("is a dangling link, or not a regular file", file=file)
    if part := _GGUF_PART.fullmatch(file.name):
        return _gguf_parts(file.parent, *part.group(1, 3))
    if not file.name.endswith(INDEX_SUFFIX):
        return [file]
    return [file, *(file.parent / shard for shard in sorted(set(read_index(file).values())))]


def _gguf_parts(directory: Path, stem: str, count: str) -> list[Path]:
    """Returns all parts of a GGUF file that was split, in their order. CheckpointError names those that are missing."""
    parts = [
        directory / f"{stem}-{number:05d}-of-{count}.gguf" for number in range(1, min(int(count), _MAX_SHARDS) + 1)
    ]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise CheckpointError(
            f"is one of {count} parts of a model; missing: {', '.join(missing[:20])}",
            file=directory / f"{stem}-*-of-{count}.gguf",
            hint="put all parts into one directory",
        )
    return parts


def _gguf_files(directory: Path) -> list[Path]:
    files = sorted(path for path in directory.glob("*.gguf") if path.is_file())
    models: dict[tuple[str, str] | str, Path] = {}  # the first part of each
    for path in files:
        part = _GGUF_PART.fullmatch(path.name)
        models.setdefault((part[1], part[3]) if part else path.name, path)
    if len(models) == 1:
        return _with_shards(files[0])
    if models:
        names = ", ".join(path.name for path in models.values())
        raise CheckpointError(
            f"has {len(models)} GGUF files: {names}", file=directory, hint="pass the path of one of them"
        )
    names = sorted(path.name for path in directory.iterdir())[:20]
    raise CheckpointError(
        f"has no weights; it holds {', '.join(names) or 'nothing'}",
        file=directory,
        hint=f"expected one of {', '.join(PREFERENCE)}, or a .gguf file",
    )


def check_links(directory: Path, files: Sequence[Path]) -> None:
    """Raises CheckpointError unless files lie in the directory itself, or are the Hub cache's links to its blobs."""
    problems = Problems(directory)
    for file in files:
        if not is_inside(directory, file):
            problems.add(f"{file.name} is a link out of the directory, to {os.path.realpath(file)}")
    problems.check(hint="follow_links=True (--follow-links) reads it all the same, if you trust it")


def is_inside(directory: Path, file: Path) -> bool:
    """True if links from `file` end in `directory` itself, or in the blobs of a Hub cache around it."""
    home, target = Path(os.path.realpath(directory)), Path(os.path.realpath(file))
    cache = next((parent.parent for parent in [home, *home.parents] if parent.name == "snapshots"), None)
    return target.parent == home or (cache is not None and target.parent == cache / "blobs")
