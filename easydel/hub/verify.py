"""Checks files against the hashes that the Hub states. A file is hashed once: a note in the cache remembers it.

huggingface_hub compares only sizes. For a large file the Hub states the sha256; for a small one, which is stored in git
itself, git's id: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from pathlib import Path
from typing import NamedTuple

_log = logging.getLogger(__name__)
_BLOCK = 4 << 20  # bytes hashed at a time; hashlib lets other threads run meanwhile
_NOTES = ".easydel/verified"  # in the repository's folder, where huggingface_hub ignores files it does not know


class Digest(NamedTuple):
    """A hash that the Hub states: `kind` is "sha256" of the content, or "sha1" of a git blob."""

    kind: str
    hex: str

    def __str__(self) -> str:
        return f"{'git id' if self.kind == 'sha1' else self.kind} {self.hex}"


def named(file: Path) -> Digest | None:
    """Returns the hash in the name of the blob that `file` links to: the Hub's answer to the download, if any."""
    name = _stored(file).name
    if re.fullmatch(r"[0-9a-f]{64}", name):
        return Digest("sha256", name)
    return Digest("sha1", name) if re.fullmatch(r"[0-9a-f]{40}", name) else None


def differs(file: Path, stated: Digest, storage: Path) -> Digest | None:
    """Returns the hash of `file`, if it is not `stated`. Skips reading the file if `storage` has a note of it."""
    content = _stored(file)
    note = storage / _NOTES / (content if content.is_relative_to(storage) else file).relative_to(storage)
    state = content.stat()
    seen = f"{stated} {state.st_size} {state.st_mtime_ns}"
    try:
        if note.read_text() == seen:
            return None
    except (OSError, ValueError):
        pass  # no note, or not one of ours
    found = _hash(content, stated.kind, state.st_size)
    if found != stated:
        return found
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(seen)  # half a note differs from a whole one, so that this need not be atomic
    except OSError as error:
        _log.debug("%s cannot be noted as verified, and will be hashed again: %s", content, error)
    return None


def discard(file: Path) -> None:
    """Removes `file`, and the blob that it links to."""
    _stored(file).unlink(missing_ok=True)
    file.unlink(missing_ok=True)


def _stored(file: Path) -> Path:
    """Returns the cache's place of the content of `file`: one link further, since a blob may itself be a link."""
    return Path(os.path.normpath(file.parent / os.readlink(file))) if file.is_symlink() else file


def _hash(file: Path, kind: str, size: int) -> Digest:
    digest = hashlib.new(kind, usedforsecurity=False)
    if kind == "sha1":
        digest.update(b"blob %d\0" % size)
    block = memoryview(bytearray(min(_BLOCK, size) or 1))
    with file.open("rb", buffering=0) as stream:
        while read := stream.readinto(block):
            digest.update(block[:read])
    return Digest(kind, digest.hexdigest())
