"""Replaces a directory as a whole: at any moment, even if the writer dies, readers see the old one or the new one.

The new directory is made beside the target as `<target>.tmp-<pid>-<random>` and put in its place by one exchange of the
two names. Where the system cannot exchange (it is Linux's renameat2), the old one is renamed to `<target>.old-...`:
a writer killed right then leaves only that, and `recover_directory` renames it back.

A writer holds a lock on its temporary directory, which the system releases when the writer dies: unlocked ones are
litter.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from easydel.errors import ArgumentError, CheckpointError

# Files of a saved model that the next save removes even if it does not write them: more shards, marks of another kind.
OWNED = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model-*-of-*.bin",
    "pytorch_model.bin.index.json",
    "easydel.safetensors",
    "easydel-*-of-*.safetensors",
    "easydel.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "easydel.json",
)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@contextmanager
def atomic_directory(target: str | os.PathLike[str], *, owned: Sequence[str] = OWNED) -> Iterator[Path]:
    """Yields an empty directory that takes the place of `target` after the block, or vanishes if the block raises.

    Files in an existing `target` are carried over, except those that the block wrote anew and those whose name matches
    a pattern in `owned`. Everything is on the disk when the block has ended. Raises CheckpointError if that cannot be
    done, ArgumentError if `target` is no path.
    """
    place = Path(os.path.realpath(as_path(target)))  # a link to a directory remains a link
    _check_replaceable(target, place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        recover_directory(place)
        _remove_litter(place)
        fresh, lock = _locked_directory(place)
    except OSError as error:
        raise _refused(place, error) from error
    try:
        yield fresh
        _sync(fresh)
        _replace(fresh, place, owned)
    except OSError as error:  # also of the block: the disk may be full at any file
        raise _refused(place, error) from error
    finally:
        # After an exchange this is the old directory. What cannot be removed now is litter for the next writer.
        shutil.rmtree(fresh, ignore_errors=True)
        os.close(lock)


def as_path(directory: Any) -> Path:
    """Returns the directory as a path. Raises ArgumentError if it is not one, or not one to the system."""
    try:
        path = Path(directory)
        if b"\0" not in os.fsencode(path):
            return path
    except (TypeError, UnicodeEncodeError):
        pass
    raise ArgumentError(f"directory={directory!r} is no path", hint="pass a str or a pathlib.Path")


def recover_directory(target: str | os.PathLike[str]) -> None:
    """Restores the directory that a dead writer renamed away from `target` and did not replace."""
    place = Path(os.path.realpath(target))
    if os.path.lexists(place) or not os.path.isdir(place.parent):
        return
    with suppress(OSError):  # another process was quicker, or this one lacks permission: then the caller finds nothing
        if aside := sorted(_siblings(place, ".old-"), key=lambda path: path.stat().st_ctime_ns):
            aside[-1].rename(place)


def _check_replaceable(target: str | os.PathLike[str], place: Path) -> None:
    """Raises CheckpointError if the directory is, or holds, the working directory, which would be deleted."""
    if not os.fspath(target):
        raise CheckpointError("an empty path, expected a directory to write")
    with suppress(FileNotFoundError):  # the working directory is gone already
        if Path.cwd().is_relative_to(place):
            hint = "save into a directory below it, or work in another one"
            raise CheckpointError("is, or holds, the working directory, and would be replaced", file=place, hint=hint)


def _refused(place: Path, error: OSError) -> CheckpointError:
    mount = error.errno in (errno.EBUSY, errno.EXDEV)
    hint = "it is a mount point: save into a directory below it" if mount else "what was there is unchanged"
    return CheckpointError(f"cannot be written: {error.strerror or error}", file=place, hint=hint)


def _siblings(place: Path, mark: str) -> list[Path]:
    name = re.compile(re.escape(f"{place.name}{mark}") + r"\d+-[0-9a-f]{8}")
    return [path for path in place.parent.iterdir() if name.fullmatch(path.name) and path.is_dir()]


def _remove_litter(place: Path) -> None:
    """Removes temporary directories that no living writer holds, and old ones that were replaced."""
    for path in _siblings(place, ".tmp-") + (_siblings(place, ".old-") if place.exists() else []):
        with suppress(OSError):  # held by a living writer, or removed meanwhile
            lock = _lock(path)
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _locked_directory(place: Path) -> tuple[Path, int]:
    while True:
        fresh = place.with_name(f"{place.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
        fresh.mkdir()
        try:
            return fresh, _lock(fresh)
        except (BlockingIOError, FileNotFoundError):  # another writer took it for litter before it was locked
            continue
        except OSError:  # a file system without locks: nobody will take it for litter
            return fresh, os.open(fresh, os.O_RDONLY | os.O_DIRECTORY)


def _lock(directory: Path) -> int:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(directory)  # raises if it was removed between opening and locking
    except OSError:
        os.close(handle)
        raise
    return handle


def _replace(fresh: Path, place: Path, owned: Sequence[str]) -> None:
    if not os.path.lexists(place):
        fresh.rename(place)
        _sync_directory(place.parent)
        return
    if not place.is_dir():
        raise CheckpointError("is a file, not a directory", file=place)
    _carry_over(place, fresh, owned)
    fresh.chmod(stat.S_IMODE(place.stat().st_mode))
    if not _exchange(fresh, place):
        aside = place.with_name(fresh.name.replace(".tmp-", ".old-", 1))
        place.rename(aside)
        fresh.rename(place)
        _sync_directory(place.parent)
        shutil.rmtree(aside, ignore_errors=True)
    _sync_directory(place.parent)


def _carry_over(old: Path, new: Path, owned: Sequence[str]) -> None:
    """Links into `new` the files that are not ours, as hard links: until the exchange `old` stays whole."""
    for entry in sorted(old.iterdir()):
        if os.path.lexists(new / entry.name) or any(fnmatch(entry.name, pattern) for pattern in owned):
            continue
        if entry.lstat().st_dev != new.stat().st_dev:
            raise OSError(errno.EXDEV, f"{entry.name} is on another file system")
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, new / entry.name, symlinks=True, copy_function=_link)
        else:
            _link(entry, new / entry.name)
    _sync_directory(new)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # not every file system has hard links, and not every user may make them
        shutil.copy2(source, target, follow_symlinks=False)


def _exchange(left: Path, right: Path) -> bool:
    """Swaps two names in one step. Returns False if this system cannot."""
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if swap is None:
        return False
    if swap(_AT_FDCWD, os.fsencode(left), _AT_FDCWD, os.fsencode(right), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code))


def _sync(directory: Path) -> None:
    for folder, _, names in os.walk(directory):
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                with path.open("rb") as handle:
                    os.fsync(handle.fileno())
        _sync_directory(Path(folder))


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
