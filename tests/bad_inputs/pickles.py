"""Files of torch.save, and imitations of them. Each gadget would leave a file behind if it ran."""

from __future__ import annotations

import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_inputs import Bad
from bad_inputs.valid import PICKLE, WEIGHTS, write_torch

BOTH = {"zip": True, "legacy": False}


class Gadget:
    """Unpickles as `function(*arguments)`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def gadgets(marker: Path) -> dict[str, Any]:
    return {
        "system": Gadget(os.system, f"touch {marker}"),
        "mkdir": Gadget(os.mkdir, str(marker)),
        "exec": Gadget(exec, f"open({str(marker)!r}, 'w')"),
        "eval": Gadget(eval, f"open({str(marker)!r}, 'w')"),
        "open": Gadget(open, str(marker), "w"),
        "getattr": Gadget(getattr, "x", "upper"),
    }


def hostile(kind: str, zipped: bool, raw: bool = False) -> Bad:
    def spoil(directory: Path) -> None:
        file = write_torch(directory, zipped=zipped)
        payload = pickle.dumps({"x": gadgets(directory / "marker")[kind]}, protocol=2)
        if raw or not zipped:
            file.write_bytes(payload)
        else:
            rezip(file, lambda name, content: payload if name.endswith("data.pkl") else content)

    words = ("not on the list", "nothing of it was executed")
    return Bad(f"pickle-{kind}-{'plain' if raw else 'zip' if zipped else 'legacy'}", spoil, words, PICKLE)


def rezip(file: Path, change: Callable[[str, bytes], bytes | None], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(file) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in records.items():
            if (changed := change(name, content)) is not None:
                archive.writestr(name, changed)


def spoiled(name: str, change: Callable[[Path], object], *words: str, zipped: bool = True) -> Bad:
    def spoil(directory: Path) -> None:
        change(write_torch(directory, zipped=zipped))

    return Bad(f"torch-{name}", spoil, words, PICKLE)


def cut(kind: str, part: float) -> Bad:
    def change(file: Path) -> None:
        os.truncate(file, int(file.stat().st_size * part))

    return spoiled(f"{kind}-cut-at-{part}", change, zipped=BOTH[kind])


def content(name: str, raw: bytes, *words: str) -> Bad:
    return spoiled(name, lambda file: file.write_bytes(raw), *words)


def encrypt(file: Path) -> None:
    """Set the flag of encryption in every record of the central directory."""
    raw = bytearray(file.read_bytes())
    at = -1
    while (at := raw.find(b"PK\x01\x02", at + 1)) >= 0:
        raw[at + 8] |= 1
    file.write_bytes(raw)


def tarred(file: Path) -> None:
    with tarfile.open(file.with_suffix(".tar"), "w") as archive:
        archive.add(file, "storages")
    os.replace(file.with_suffix(".tar"), file)


def beside_safetensors(directory: Path) -> None:
    """A pickle is not the way out of broken safetensors."""
    write_torch(directory)
    (directory / WEIGHTS).write_bytes(b"broken")


ITSELF = b"\x80\x02]q\x00(" + b"h\x00" * 1000 + b"e."
BAD = [
    *(hostile(kind, zipped) for kind in gadgets(Path()) for zipped in BOTH.values()),
    hostile("system", True, raw=True),
    spoiled("deflated", lambda file: rezip(file, lambda _, content: content, zipfile.ZIP_DEFLATED), "compressed"),
    spoiled("bzipped", lambda file: rezip(file, lambda _, content: content, zipfile.ZIP_BZIP2), "compressed"),
    spoiled("encrypted", encrypt, "encrypted"),
    spoiled("tar", tarred, "tar archive"),
    spoiled(
        "without-data.pkl", lambda file: rezip(file, lambda name, content: None if name.endswith(".pkl") else content)
    ),
    spoiled(
        "without-storage",
        lambda file: rezip(file, lambda name, content: None if name.endswith("/0") else content),
        "missing",
    ),
    spoiled(
        "short-storage",
        lambda file: rezip(file, lambda name, content: content[:9] if name.endswith("/0") else content),
        "truncated",
    ),
    spoiled(
        "big-endian", lambda file: rezip(file, lambda name, content: b"big" if "byteorder" in name else content), "big"
    ),
    *(cut(kind, part) for kind in BOTH for part in (0.001, 0.01, 0.1, 0.5, 0.9, 0.999)),
    content("empty", b"", "is empty"),
    content("html", b"<!DOCTYPE html>", "HTML"),
    content("lfs-pointer", b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
    content("one-byte", b"\x80"),
    content("text", b"weights"),
    content("list", pickle.dumps([1, 2], protocol=2)),
    content("number", pickle.dumps(5, protocol=2)),
    content("itself-in-itself", ITSELF),
    content("memo-of-2**31", b"\x80\x02]r\xff\xff\xff\x7f."),
    content("text-of-2**31", b"\x80\x02X\xff\xff\xff\x7f."),
    content("deep", b"\x80\x02" + b"(" * 1_000_000 + b"."),
    Bad("torch-beside-broken-safetensors", beside_safetensors, (), WEIGHTS),
]
