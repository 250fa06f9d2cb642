"""Collects the problems of a checkpoint's files, to report them all at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from easydel.errors import CheckpointError, listed

_IMPOSTORS = (
    (b"version https://git-lfs", "is a git-lfs pointer, not the weights", "run `git lfs pull` in the directory"),
    (b"<!doctype html", "is an HTML page saved as weights", "download the file again"),
    (b"<html", "is an HTML page saved as weights", "download the file again"),
    (b"<?xml", "is an XML document saved as weights, perhaps an error of the server", "download the file again"),
    (b'{"error', "is an error message of a server saved as weights", "download the file again"),
    (b"GGUF", "holds GGUF data", "rename it to end in .gguf"),
    (b"PK\x03\x04", "is a zip archive, as torch.save writes it", "rename it to end in .bin"),
)


@dataclass
class Problems:
    """The problems of one file; `check` raises them."""

    file: Path
    found: list[tuple[str | None, str]] = field(default_factory=list)

    def add(self, problem: str, tensor: str | None = None) -> None:
        self.found.append((tensor, problem))

    def check(self, hint: str | None = None) -> None:
        """Raises one CheckpointError that lists every problem, if there is any."""
        if len(self.found) == 1:
            tensor, problem = self.found[0]
            raise CheckpointError(problem, file=self.file, tensor=tensor, hint=hint)
        if self.found:
            lines = [f"tensor {tensor!r}: {problem}" if tensor else problem for tensor, problem in self.found]
            first = next((tensor for tensor, _ in self.found if tensor), None)
            error = CheckpointError(f"{len(lines)} problems{listed(lines)}", file=self.file, hint=hint)
            error.tensor = first
            raise error


def refuse_impostor(file: Path, head: bytes) -> None:
    """Raises CheckpointError if the first bytes of a file are those of another format."""
    if not head:
        raise CheckpointError("is empty", file=file, hint="download the file again")
    start = head.lstrip()[:64]
    for magic, problem, hint in _IMPOSTORS:
        if start.startswith(magic) or start.lower().startswith(magic):
            raise CheckpointError(problem, file=file, hint=hint)
