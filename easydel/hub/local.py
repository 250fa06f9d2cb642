"""Local paths: existing ones, and mistyped ones."""

from __future__ import annotations

import errno
import os
from difflib import get_close_matches
from os import PathLike
from pathlib import Path

from easydel.checkpoint.atomic import recover_directory
from easydel.errors import ArgumentError, HubError

WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin")
MAX_SHOWN = 300  # characters of a path


def exists(path: Path) -> bool:
    """True if there is something at `path`, or was until a writer died in the middle of replacing it."""
    try:
        recover_directory(path)
        if path.is_dir():
            os.stat(f"{path}/.")  # raises if nothing in it may be looked at
            os.scandir(path).close()
        return path.exists()
    except ValueError:  # a null character
        return False
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise HubError("no file or directory can have so long a name", file=os.fspath(path)[:MAX_SHOWN]) from error
        raise HubError(f"cannot be read: {error.strerror or error}", file=path) from error


def named(name_or_path: str | PathLike[str]) -> Path:
    """Returns the local path of that name. HubError for an empty one, which would be the working directory."""
    if not isinstance(name_or_path, str | PathLike):
        hint = "expected a Hub id such as 'owner/name', a directory or a file"
        raise ArgumentError(f"the name of the model is {name_or_path!r:.100}", hint=hint)
    if not str(name_or_path).strip():
        raise HubError("is empty, expected a Hub id, a directory or a file", file=repr(name_or_path))
    return Path(name_or_path).expanduser()


def existing(path: Path, subfolder: str) -> Path:
    """Returns `subfolder` of the directory `path`, or the weight file `path` itself."""
    inner = path / subfolder if subfolder else path
    if not exists(inner):
        raise HubError(f"has no folder {subfolder!r}", file=path, hint=similar(inner))
    if inner.is_file() and not inner.name.endswith(WEIGHT_SUFFIXES):
        hint = f"pass its directory, or a file that ends with one of {', '.join(WEIGHT_SUFFIXES)}"
        raise HubError("is not a file of weights", file=inner, hint=hint)
    return inner


def refuse_path(name: str | PathLike[str]) -> None:
    """Raises HubError for a name that cannot be a Hub id, hence must be a path, and does not exist."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    problem = "no such file or directory"
    path = Path(name)
    if not isinstance(name, str) or name.startswith(("/", ".", "~")) or name.endswith(WEIGHT_SUFFIXES):
        raise HubError(problem, file=name, hint=similar(path))
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise HubError(f"{problem}, and not a Hub id such as 'owner/name'", file=name, hint=similar(path)) from error


def similar(path: Path) -> str | None:
    """Returns a hint for a path that does not exist: similar names, or the contents of its last existing parent."""
    path = path.expanduser()
    parent = next((parent for parent in path.parents if parent.is_dir()), None)
    if parent is None:
        return None
    names = sorted(entry.name for entry in parent.iterdir())
    close = get_close_matches(path.relative_to(parent).parts[0], names)
    if close:
        return f"did you mean {' or '.join(str(parent / name) for name in close)}?"
    return f"{parent} holds {', '.join(names[:10]) or 'nothing'}" if parent != Path() else None


def hub_name(directory: Path) -> str | None:
    """Returns the Hub id of the repository that a folder in a Hub cache belongs to, None for any other folder."""
    for snapshots in directory.parents:
        if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):
            return snapshots.parent.name.removeprefix("models--").replace("--", "/")
    return None
