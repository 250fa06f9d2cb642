"""The mark of a directory written by `save_pretrained`: it uses our own names, and lists parameters stored as int8."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from easydel.errors import CheckpointError

MANIFEST = "easydel.json"
VERSION = 1
MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Manifest:
    """`int8` are the per-layer paths ("model/layers/0/self_attn/q_proj/kernel") stored as int8 with scales."""

    int8: tuple[str, ...] = ()

    def write(self, directory: Path) -> None:
        (directory / MANIFEST).write_text(json.dumps({"format": VERSION, "int8": self.int8}, indent=1))


def read_manifest(directory: Path) -> Manifest:
    """Returns the manifest. Raises CheckpointError without one: `save_pretrained` did not write the directory."""
    file = directory / MANIFEST
    if not file.is_file():
        raise CheckpointError(
            "no such file", file=file, hint="from_torch=False is for directories written by save_pretrained"
        )
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"{file.stat().st_size} bytes")
        found = json.loads(file.read_bytes())
        version, int8 = found["format"], tuple(found["int8"])
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror or error}", file=file) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"not a manifest ({error!r})", file=file) from None
    if version != VERSION or not all(isinstance(path, str) for path in int8):
        raise CheckpointError(f"format {version!r} is not known, expected {VERSION}", file=file, hint="update easydel")
    return Manifest(int8)
