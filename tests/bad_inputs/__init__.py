"""Broken or hostile checkpoints, by format: each is made in a directory and has to be refused."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Bad:
    """`make` spoils the valid model in the directory that it gets, and may return another path to load.

    `words` are in the message; `file` is the end of the path that the error names, `tensor` the tensor.
    `arguments` are given to `from_pretrained`.
    """

    name: str
    make: Callable[[Path], Path | None]
    words: tuple[str, ...] = ()
    file: str = ""
    tensor: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


def all_bad() -> list[Bad]:
    """The `BAD` of every module of this package."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return [bad for module in modules for bad in getattr(module, "BAD", [])]
