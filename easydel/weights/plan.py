"""Which parameter is made of which checkpoint tensors, decided and checked from headers alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

import ml_dtypes
import numpy as np

from easydel.errors import CheckpointError, listed
from easydel.weights.expressions import Expression, Index, Stack, source_names, straightened
from easydel.weights.names import Names

FLOAT32 = np.dtype(np.float32)
BLOCK_BYTES = 16 << 20


class TensorSource(Protocol):
    """What a plan needs of a checkpoint's tensor; `checkpoint.Tensor` is one.

    One whose last two dimensions are the other way round in the file may have that as `turned`, also a TensorSource.
    """

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    @property
    def file(self) -> Path: ...
    @property
    def nbytes(self) -> int: ...
    def read(self, index: Index = ()) -> np.ndarray: ...


@dataclass(frozen=True)
class Zeros:
    """Stands for a tensor that the checkpoint in `file` lacks and may lack."""

    name: str
    shape: tuple[int, ...]
    file: Path
    dtype: np.dtype = FLOAT32
    nbytes: int = 0

    def read(self, index: Index = ()) -> np.ndarray:
        return np.broadcast_to(np.zeros((), self.dtype), self.shape)[index]


@dataclass(frozen=True)
class Plan:
    """`expressions` by parameter path, over `tensors` by the names that the family's table uses."""

    expressions: Mapping[str, Expression]
    shapes: Mapping[str, tuple[int, ...]]
    tensors: Mapping[str, TensorSource]
    unused: tuple[str, ...]


def make_plan(
    shapes: Mapping[str, tuple[int, ...]],
    layer_paths: Mapping[str, list[str]],
    names: Names,
    tensors: Mapping[str, TensorSource],
    *,
    tied: bool,
    file: Path | None = None,
    integers: Collection[str] = (),
) -> Plan:
    """A plan that fills every parameter and uses or knowingly ignores every tensor; CheckpointError lists all problems.

    `shapes` of parameters by path; `layer_paths` gives the per-layer paths that a (stacked) parameter consists of.
    `file` is what says which tensors there are, such as an index: the error names it where no tensor's own file is to
    blame. Where `tied`, the head stands for token vectors that the checkpoint lacks. A parameter with a scale per row
    beside it is stored as int8, those in `integers` as integers of any size, and any other as floats.
    """
    per_layer = {
        part: shapes[path] if parts == [path] else shapes[path][1:]
        for path, parts in layer_paths.items()
        for part in parts
    }
    single = {path: names.expression(path, per_layer) for path in per_layer}
    expressions = {
        path: single[path] if parts == [path] else Stack(tuple(single[part] for part in parts))
        for path, parts in layer_paths.items()
    }
    readers = source_names(expressions)
    substitutes = _tied_substitutes(names) if tied else names.substitutes
    found = _resolve(readers.keys(), names.prefix, substitutes, tensors)
    found |= _zeros(expressions, shapes, set(names.optional) - set(found), file)
    used = {id(tensor) for tensor in found.values()}
    ignored = [*names.ignored, *([r".*lm_head\.weight", r"output\.weight", r".*embed_out\.weight"] if tied else [])]
    unused = [
        name
        for name, tensor in tensors.items()
        if id(tensor) not in used and not any(re.fullmatch(pattern, name) for pattern in ignored)
    ]
    problems = _missing(readers, found) + _mismatched(expressions, shapes, found, integers)
    problems += [
        Problem(tensors[name].name, f"{list(tensors[name].shape)} has no place in the model", tensors[name].file)
        for name in unused
    ]
    if problems:
        raise _misfit(problems, file)
    ignorable = tuple(name for name, tensor in tensors.items() if id(tensor) not in used)
    turned = {name: other for name, tensor in found.items() if (other := getattr(tensor, "turned", None)) is not None}
    if turned:
        expressions, chosen = straightened(expressions, turned)
        found |= {name: turned[name] for name in chosen}
    return Plan(expressions, shapes, found, ignorable)


def head_differs(names: Names, tensors: Mapping[str, TensorSource]) -> bool:
    """Whether a checkpoint holds both a head and token vectors, and they are not the same: then they are not tied."""
    wanted = _head_and_embedding(names)
    found = _resolve(wanted, names.prefix, names.substitutes, tensors)
    if len(found) < 2 or found[wanted[0]] is found[wanted[1]]:
        return False
    head, embedding = (found[name] for name in wanted)
    if head.shape != embedding.shape or head.dtype != embedding.dtype:
        return True
    rows = max(BLOCK_BYTES // max(head.dtype.itemsize * head.shape[-1], 1), 1)
    blocks = ((slice(start, start + rows),) for start in range(0, head.shape[0], rows))
    return any(head.read(block).tobytes() != embedding.read(block).tobytes() for block in blocks)


def _head_and_embedding(names: Names) -> tuple[str, str]:
    """What the checkpoint calls the matrices of the head and of the token vectors."""
    return names.theirs("lm_head.weight"), names.theirs("model.embed_tokens.weight")


def _tied_substitutes(names: Names) -> dict[str, tuple[str, ...]]:
    """The table's substitutes, and as the last one for the token vectors the head: it holds the same."""
    head, embedding = _head_and_embedding(names)
    others = (*names.substitutes.get(embedding, ()), head, *names.substitutes.get(head, ()))
    return {**names.substitutes, embedding: others}


def _resolve(
    wanted: Collection[str],
    prefix: str,
    substitutes: Mapping[str, tuple[str, ...]],
    tensors: Mapping[str, TensorSource],
) -> dict[str, TensorSource]:
    """Tensors by wanted name. Files of a base model lack the family's prefix, and those of a multimodal model, whose
    language model has its config here, say language_model before or within it."""
    found: list[dict[str, TensorSource]] = []
    for spelling in _spellings(prefix):
        found.append(_spelled(wanted, substitutes, tensors, spelling))
        if len(found[-1]) == len(wanted):
            return found[-1]
    return max(found, key=len)


def _spellings(prefix: str) -> tuple[Callable[[str], str], ...]:
    body = f"{prefix}."
    return (
        lambda name: name,
        lambda name: name.removeprefix(body),
        lambda name: f"language_model.{name}",
        lambda name: f"{body}language_model.{name.removeprefix(body)}" if name.startswith(body) else name,
    )


def _spelled(
    wanted: Collection[str],
    substitutes: Mapping[str, tuple[str, ...]],
    tensors: Mapping[str, TensorSource],
    spelling: Callable[[str], str],
) -> dict[str, TensorSource]:
    """The tensors that there are under their own name, or a substitute's, in this spelling."""
    found = {name: tensors[own] for name in wanted if (own := spelling(name)) in tensors}
    for name, others in substitutes.items():
        if name in wanted and name not in found:
            known = next((own for other in others if (own := spelling(other)) in tensors), None)
            if known is not None:
                found[name] = tensors[known]
    return found


def _zeros(
    expressions: Mapping[str, Expression], shapes: Mapping[str, tuple[int, ...]], lacking: set[str], file: Path | None
) -> dict[str, TensorSource]:
    return {
        name: Zeros(name, shape, file or Path())
        for path, expression in expressions.items()
        for name, shape in expression.shapes(shapes[path]).items()
        if name in lacking
    }


class Problem(NamedTuple):
    """What is wrong with the tensor `name`, and the file that has it, if one does."""

    name: str
    text: str
    file: Path | None = None


def _misfit(problems: list[Problem], file: Path | None) -> CheckpointError:
    """One error for all; its file is the one that they are in, or `file` if it is not one and the same."""
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
        hint="is it a checkpoint of another model, or of a part of one?",
    )
    error.tensor = problems[0].name
    return error


def _shown(name: str) -> str:
    """A name for a message: quoted if it could be mistaken, or do something to a terminal."""
    return name if name.isprintable() and name.strip() == name != "" else repr(name)


def _missing(readers: Mapping[str, list[str]], found: Mapping[str, TensorSource]) -> list[Problem]:
    return [
        Problem(name, f"is missing (for {', '.join(paths)})") for name, paths in readers.items() if name not in found
    ]


def _mismatched(
    expressions: Mapping[str, Expression],
    shapes: Mapping[str, tuple[int, ...]],
    found: Mapping[str, TensorSource],
    integers: Collection[str],
) -> list[Problem]:
    problems: dict[str, Problem] = {}
    for path, expression in expressions.items():
        wanted = "int8" if f"{path}_scale" in shapes else "integers" if path in integers else "floating-point numbers"
        for name, expected in expression.shapes(shapes[path]).items():
            tensor = found.get(name)
            if tensor is None:
                continue
            if tuple(tensor.shape) != expected:
                text = f"is {list(tensor.shape)}, expected {list(expected)} from the config"
            elif not _is_of(wanted, tensor.dtype):
                text = f"is {tensor.dtype}, expected {wanted}"
            else:
                continue
            alias = "" if tensor.name == name else f", as {name}"
            problems[name] = Problem(tensor.name, text + alias, tensor.file)
    return list(problems.values())


@cache
def _is_of(wanted: str, dtype: np.dtype) -> bool:
    if wanted == "integers":
        return np.issubdtype(dtype, np.integer)
    return is_number(dtype) and (wanted == "int8") == (dtype == np.int8)


def is_number(dtype: np.dtype) -> bool:
    """Whether a weight may have this dtype: a float, or the int8 of our own saved models."""
    return dtype == np.int8 or np.issubdtype(dtype, np.floating) or dtype in _EXTRA_FLOATS


_EXTRA_FLOATS = [np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2)]
