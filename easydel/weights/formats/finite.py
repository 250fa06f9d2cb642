"""The search for NaN and Inf among scales, before weights are read: one of them spoils a whole block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod

import jax
import numpy as np

from easydel.checkpoint import Tensor
from easydel.checkpoint.problems import Problems
from easydel.checkpoint.tensor import has_nonfinite
from easydel.weights.coded import INTEGERS
from easydel.weights.formats.hqq import Columns
from easydel.weights.formats.matrix import Matrix
from easydel.weights.formats.parts import Part
from easydel.weights.sources import TensorSource

NUMBERS = 1 << 20  # that are looked at together


def check_scales(tensors: Iterable[TensorSource]) -> None:
    """Raises CheckpointError with every tensor of scales, offsets or factors that are NaN or Inf.

    Only local files are looked at: from another machine each tensor would be a request, and what is wrong with it is
    told when it arrives with its weights. Of several processes each looks at its share: all fail where one does.
    """
    found: dict[str, Tensor] = {}
    different = [*{id(tensor): tensor for tensor in tensors}.values()]
    for tensor in different[jax.process_index() :: jax.process_count()]:
        if isinstance(tensor, Matrix | Columns) and all(part.source is None for part in tensor.stored):
            found |= {bad.name: bad for bad in _spoiled(tensor)}
    if found:
        problems = Problems(next(iter(found.values())).file)
        for name in sorted(found):
            problems.add("has scales that are NaN or Inf", name)
        problems.check(hint="allow_nonfinite=True loads them all the same")


def _spoiled(matrix: Matrix | Columns) -> Iterator[Tensor]:
    """Yields the tensors beside the codes that hold NaN or Inf, or, if none does, one that stands for it."""
    _, *beside = matrix.stored
    if not any(has_nonfinite(numbers) for part in _numbers(matrix) for numbers in _in_pieces(part)):
        return
    bad = [tensor for tensor in beside if has_nonfinite(tensor.read())]
    yield from bad or beside[:1]  # an exponent, or a divisor


def _numbers(matrix: Matrix | Columns) -> list[Part]:
    """Returns the floats beside the codes."""
    parts = [matrix.scale, matrix.zero] if isinstance(matrix, Columns) else _parts_of(matrix)
    return [part for part in parts if part.dtype not in INTEGERS and not np.issubdtype(part.dtype, np.integer)]


def _parts_of(matrix: Matrix) -> list[Part]:
    parts = (matrix.scale, matrix.shift, matrix.factor, matrix.gain)
    return [part for part in parts if part is not None]


def _in_pieces(part: Part) -> Iterator[np.ndarray]:
    if not part.shape:
        yield part.read(())
        return
    rows, *others = part.shape
    step = max(NUMBERS // max(prod(others), 1), 1)
    whole = [slice(0, size, 1) for size in others]
    yield from (part.read((slice(start, min(start + step, rows), 1), *whole)) for start in range(0, rows, step))
