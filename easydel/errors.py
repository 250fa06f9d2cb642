"""All errors that a caller, a file or a device can cause, as one family of exceptions.

Catch `EasyDeLError` to catch them all. Each is also a `ValueError`, and carries what a program needs to react:
the file, the tensor, the problem, and a hint what to do next. A bare `KeyError` out of this package is our bug.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath


class EasyDeLError(ValueError):
    """An error that a user, a checkpoint or a device caused. `str()` is the whole message in one readable piece."""

    def __init__(
        self,
        problem: str,
        *,
        file: str | PathLike[str] | None = None,
        tensor: str | None = None,
        hint: str | None = None,
    ):
        self.problem = problem
        self.file = None if file is None else fspath(file)
        self.tensor = tensor
        self.hint = hint
        where = [part for part in (self.file, tensor and f"tensor {tensor!r}") if part]
        message = ": ".join([*where, problem])
        super().__init__(f"{message}; {hint}" if hint else message)


class CheckpointError(EasyDeLError):
    """A checkpoint's files are missing, broken, hostile, or do not fit the model that its config describes."""


class ConfigError(EasyDeLError):
    """A config is unreadable, lacks a key, or holds a value that makes no sense."""


class UnsupportedModelError(EasyDeLError):
    """The config is fine, but asks for a model type or a feature that this version does not implement."""


class ShardingError(EasyDeLError):
    """A mesh, partition rule or shape that cannot work together."""


class HubError(EasyDeLError):
    """The Hub refused, cannot be reached, or sent something else than it promised."""


class ArgumentError(EasyDeLError):
    """An argument of a public function has a value or name that it does not take."""


class ProcessError(EasyDeLError):
    """A process of a job of several is gone, or does something else than the others."""


def listed(problems: Sequence[str], limit: int = 20) -> str:
    """Returns `problems` as an indented list; past `limit`, the number of the others."""
    shown = [f"\n  - {problem}" for problem in problems[:limit]]
    rest = len(problems) - limit
    return "".join(shown) + (f"\n  ... and {rest} more" if rest > 0 else "")
