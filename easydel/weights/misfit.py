"""Checks that a checkpoint has just the tensors that a model is made of; one error lists all deviations."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from easydel.errors import CheckpointError, listed
from easydel.weights.expressions import Expression
from easydel.weights.sources import TensorSource, is_number

HOMELESS = "has no place in the model"
MISSING = "is missing"
MOST_LEFT_OUT = 4  # patterns in a hint: with more, it is another model


def check_fit(
    expressions: Mapping[str, Expression],
    readers: Mapping[str, list[str]],
    shapes: Mapping[str, tuple[int, ...]],
    found: Mapping[str, TensorSource],
    homeless: Iterable[TensorSource],
    *,
    integers: Collection[str] = (),
    file: Path | None = None,
) -> None:
    """Raises CheckpointError with every tensor that is missing, has a wrong shape or kind of dtype, or has no place.

    `readers` are the parameters that read a tensor, `found` the existing tensors, `homeless` those that nothing reads.
    A parameter with a scale per row beside it is stored as int8, those in `integers` as integers of any size, and any
    other as floats.
    """
    problems = [
        *_missing(readers, found),
        *_mismatched(expressions, shapes, found, integers),
        *(_Problem(own.name, f"{list(own.shape)} {HOMELESS}", own.file) for own in homeless),
    ]
    if problems:
        raise _misfit(problems, file, _left_out(problems, readers) or _behind(problems))


class _Problem(NamedTuple):
    """A problem with the tensor `name`, and the file that has it, if one does."""

    name: str
    text: str
    file: Path | None = None


def _left_out(problems: Sequence[_Problem], readers: Mapping[str, list[str]]) -> str | None:
    """Returns a hint that leaves all problems out, if they are a few extra modules of a model that is whole."""
    if any(not problem.text.endswith(HOMELESS) for problem in problems):
        return None
    tops = {name.partition(".")[0] for name in readers}
    names = [problem.name for problem in problems]
    found = {re.escape(name) if name.partition(".")[0] in tops else f"{name.partition('.')[0]}.*" for name in names}
    return f"ignore={sorted(found)} leaves what is named so out" if len(found) <= MOST_LEFT_OUT else None


def _behind(problems: Sequence[_Problem]) -> str | None:
    """Returns a hint that names what stands before all names of the missing tensors in the file, if that is so."""
    missing = [problem.name for problem in problems if problem.text.startswith(MISSING)]
    there = {problem.name for problem in problems if problem.text.endswith(HOMELESS)}
    for name in there if missing else ():
        before = name.removesuffix(missing[0])
        if before != name and {before + one for one in missing} <= there:
            return f"all that is missing is there, with {before!r} before its name: save it without that"
    return None


def _misfit(problems: list[_Problem], file: Path | None, hint: str | None) -> CheckpointError:
    """Returns one error for all problems. Its file is the one that all of them are in, else `file`."""
    files = {problem.file or file for problem in problems}
    blamed = files.pop() if len(files) == 1 else file
    lines = [
        f"{_shown(name)} {text}" + (f" (in {where.name})" if where not in (None, blamed) else "")
        for name, text, where in problems
    ]
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    error = CheckpointError(
        f"the checkpoint does not fit its config, {count}:{listed(lines)}",
        file=blamed,
        hint=hint or "is it a checkpoint of another model, or of a part of one?",
    )
    error.tensor = problems[0].name
    return error


def _shown(name: str) -> str:
    """Returns a name for a message, quoted if it could be misread or could control a terminal."""
    return name if name.isprintable() and name.strip() == name != "" else repr(name)


def _missing(readers: Mapping[str, list[str]], found: Mapping[str, TensorSource]) -> list[_Problem]:
    return [
        _Problem(name, f"{MISSING} (for {', '.join(paths)})") for name, paths in readers.items() if name not in found
    ]


def _mismatched(
    expressions: Mapping[str, Expression],
    shapes: Mapping[str, tuple[int, ...]],
    found: Mapping[str, TensorSource],
    integers: Collection[str],
) -> list[_Problem]:
    problems: dict[str, _Problem] = {}
    for path, expression in expressions.items():
        wanted = "int8" if f"{path}_scale" in shapes else "integers" if path in integers else "floating-point numbers"
        for name, expected in expression.shapes(shapes[path]).items():
            tensor = found.get(name)
            if tensor is None:
                continue
            if tuple(tensor.shape) != expected:
                text = f"is {list(tensor.shape)}, expected {list(expected)} from the config"
            elif not _is_of(wanted, tensor.dtype):
                unscaled = " without a scale beside it that is known here" if tensor.dtype.itemsize == 1 else ""
                text = f"is {tensor.dtype}{unscaled}, expected {wanted}"
            else:
                continue
            alias = "" if tensor.name == name else f", as {name}"
            problems[name] = _Problem(tensor.name, text + alias, tensor.file)
    return list(problems.values())


@cache
def _is_of(wanted: str, dtype: np.dtype) -> bool:
    if wanted == "integers":
        return np.issubdtype(dtype, np.integer)
    return is_number(dtype) and (dtype == np.int8 if wanted == "int8" else dtype.itemsize > 1)
