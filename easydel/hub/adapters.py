"""The model that an adapter's directory, as PEFT writes it, was made for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from easydel.checkpoint.files import PREFERENCE
from easydel.config import HFConfig
from easydel.errors import ArgumentError, CheckpointError, HubError
from easydel.hub import fetch
from easydel.hub.select import ADAPTER_CONFIG as CONFIG, VOCABULARIES

logger = logging.getLogger(__name__)


Found = TypeVar("Found")


def has_tokenizer(directory: Path) -> bool:
    """True if a directory holds a tokenizer."""
    return any((directory / name).is_file() for name in VOCABULARIES)


class Base(NamedTuple):
    """The name of a model, and its revision."""

    name: str
    revision: str | None


def is_adapter(path: Path) -> bool:
    """True for a directory that holds adapters and no model of its own."""
    if not (path / CONFIG).is_file():
        return False
    return not any((path / name).exists() for name in PREFERENCE) and not any(path.glob("*.gguf"))


def base_of(directory: Path) -> Base:
    """Returns the model that the adapters in `directory` were made for, as their settings name it."""
    file = directory / CONFIG
    config = HFConfig.from_file(file)
    name, revision = (config.get(key) for key in ("base_model_name_or_path", "revision"))
    if not isinstance(name, str) or not name or not isinstance(revision, str | None):
        problem = f"base_model_name_or_path is {name!r}, expected the name of the model that the adapters are for"
        raise CheckpointError(problem, file=file, hint="load that model with adapter= (on the command line, --adapter)")
    return Base(name, revision)


def located(
    name: str | PathLike[str], adapter: str | PathLike[str] | None, obtain: Callable[..., Found], hub: Mapping[str, Any]
) -> tuple[Found | Path, Path | None]:
    """Returns the files of the model `name`, and the directory of the adapters for it, if there are any.

    If `name` is that of adapters, the model is the one that they were made for. `obtain` is `fetch` or `stream`, and
    `hub` are its options; the model of adapters has a revision of its own, and no subfolder.
    """
    own = {key: value for key, value in hub.items() if key not in ("revision", "subfolder")}
    files = obtain(name, **hub)
    if adapter is not None:
        if isinstance(files, Path) and is_adapter(files):
            problem = f"holds adapters itself, and adapter={str(adapter)!r} is given"
            raise ArgumentError(problem, file=files, hint="pass one of them as adapter=, and the model as the name")
        return files, fetch(adapter, **own)
    if not isinstance(files, Path) or not is_adapter(files):
        return files, None
    base = base_of(files)
    logger.info("%s: adapters for %s", files, base.name)
    try:
        model = obtain(base.name, **own, revision=base.revision)
    except HubError as error:
        hint = "load that model by the name that it has here, with adapter= (on the command line, --adapter)"
        problem = f"its adapters are for {base.name}, which cannot be loaded: {error.problem}"
        raise HubError(problem, file=files / CONFIG, hint=hint) from error
    return model, files
