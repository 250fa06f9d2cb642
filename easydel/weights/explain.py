"""The plan of a load as data: the bytes of files that each part of a parameter comes from, and their conversions.

It describes what `weights/execute.py` does, and reads nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np

from easydel.checkpoint import Tensor
from easydel.checkpoint.tensor import extent
from easydel.weights.blocks import memoryless
from easydel.weights.coded import CodedTensor
from easydel.weights.expressions import Copy, Index
from easydel.weights.fill import mappable
from easydel.weights.formats.matrix import Turned
from easydel.weights.plan import Plan
from easydel.weights.read import bytes_of, first_byte, is_contiguous
from easydel.weights.sources import Zeros

Action = Literal["map", "read", "gather", "cast", "dequantize", "quantize", "fill"]
ACTIONS: dict[Action, str] = {
    "map": "used where it lies in the file",
    "read": "copied as it is",
    "gather": "copied out of rows or columns that are not in one run",
    "cast": "converted to the storage dtype",
    "dequantize": "decoded from blocks of numbers of a few bits",
    "quantize": "made int8 with a scale per row",
    "fill": "zeros, which the file leaves out",
}


@dataclass(frozen=True)
class ReadStep:
    """Bytes `start` to `stop` of `file`: the span of the part of `tensor` that slice `index` of parameter `path` needs.

    `nbytes` of them belong to the part. `start` and `stop` are None for tensors without one place in a file.
    """

    path: str
    index: Index
    tensor: str
    file: Path
    start: int | None
    stop: int | None
    nbytes: int
    action: Action


def read_steps(
    plan: Plan,
    splits: Mapping[str, Sequence[int]],
    dtypes: Mapping[str, np.dtype],
    int8: Collection[str] = (),
) -> Iterator[ReadStep]:
    """Yields a step for every tensor slice of every distinct part of every parameter.

    `splits` gives the number of equal parts in each dimension of a parameter, `dtypes` the dtype it is stored in. Those
    in `int8` are quantized on the way, over whole rows, whatever columns a device holds.
    """
    for path, expression in plan.expressions.items():
        shape, counts = plan.shapes[path], list(splits[path])
        if path in int8:
            counts[-1] = 1
        for index in _parts(shape, counts):
            sizes = tuple(part.stop - part.start for part in index)
            mapped = path not in int8 and mappable(plan, path, index, dtypes[path]) is not None
            for copy in expression.copies(index, memoryless(sizes)):
                action: Action = "quantize" if path in int8 else "map" if mapped else _action(plan, copy, dtypes[path])
                yield _step(plan, path, index, copy, action)


def _parts(shape: Sequence[int], counts: Sequence[int]) -> Iterator[Index]:
    for place in product(*map(range, counts)):
        yield tuple(
            slice(dim // count * number, dim // count * (number + 1))
            for dim, count, number in zip(shape, counts, place, strict=True)
        )


def _action(plan: Plan, copy: Copy, dtype: np.dtype) -> Action:
    tensor = plan.tensors[copy.name]
    if isinstance(tensor, Zeros):
        return "fill"
    if isinstance(tensor, CodedTensor | Turned) or _stored(tensor).encoding is not None:
        return "dequantize"
    if tensor.dtype != dtype:
        return "cast"
    in_order = copy.out.strides == memoryless(copy.out.shape).strides
    return "read" if isinstance(tensor, Tensor) and is_contiguous(tensor, copy.index) and in_order else "gather"


def _step(plan: Plan, path: str, index: Index, copy: Copy, action: Action) -> ReadStep:
    tensor = plan.tensors[copy.name]
    nbytes = bytes_of(tensor, copy.out.size)
    if isinstance(tensor, Zeros | CodedTensor | Turned):
        return ReadStep(path, index, tensor.name, tensor.file, None, None, nbytes, action)
    stored, sizes = _stored(tensor), [part.stop - part.start for part in copy.index]
    if stored is not tensor or stored.encoding is not None:  # whole blocks, or rows in another order: the whole tensor
        start, span = stored.offset, stored.nbytes
    else:
        start, span = first_byte(stored, copy.index), extent(sizes, stored.strides, stored.dtype.itemsize)
    return ReadStep(path, index, tensor.name, stored.file, start, start + span, nbytes, action)


def _stored(tensor: object) -> Tensor:
    """Returns the tensor of the file behind another one (`HFTensor`)."""
    stored = tensor if isinstance(tensor, Tensor) else getattr(tensor, "tensor", None)
    assert isinstance(stored, Tensor)
    return stored
