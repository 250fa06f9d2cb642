"""bitsandbytes' 4 bits (Dettmers et al. 2023, arXiv:2305.14314): NF4 and FP4, with blocks over the flattened tensor.

For a tensor of n numbers a file has weight, n / 2 bytes in some dtype (first number in the high half), weight.quant_map
[16] (the value of each code), weight.absmax [blocks], and weight.quant_state.bitsandbytes__nf4 or __fp4: bytes of JSON
with shape and block size. W = quant_map[code] * absmax[block]. With double quantization absmax is uint8, and a scale is
nested_quant_map[absmax] * nested_absmax[block // nested_blocksize] + nested_offset.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from easydel.checkpoint import Tensor
from easydel.checkpoint.strict import parse_json
from easydel.weights.coded import Form
from easydel.weights.expressions import Index
from easydel.weights.formats.checks import BYTE, misshapen
from easydel.weights.formats.eight_bits import read_bnb_int8
from easydel.weights.formats.matrix import Matrix
from easydel.weights.formats.parts import integers
from easydel.weights.formats.unpacking import Unpacking
from easydel.weights.sources import FLOAT32

BITS = 4
CODE = integers(BITS, signed=False)
STATE = ".quant_state.bitsandbytes__"
KINDS = ("nf4", "fp4")
STATE_BYTES, STATE_ITEMS = 4096, 100
BLOCK_SIZES = tuple(1 << power for power in range(5, 13))  # 32 to 4096, as bitsandbytes has them
NESTED_MAP = 256  # codes of a byte


@dataclass(frozen=True)
class Nested:
    """How the scales of blocks are quantized themselves: in bytes, in blocks of `size`, less `offset`."""

    absmax: Tensor
    quant_map: Tensor
    size: int
    offset: float


def read_bitsandbytes(it: Unpacking) -> None:
    """Puts a tensor in the place of each weight with a quant_state, or with scales of rows, and of those."""
    read_bnb_int8(it)
    for kind in KINDS:
        for name, state in it.ending(f"{STATE}{kind}"):
            it.take(state.name)
            _read_4bit(it, name, state)


def _read_4bit(it: Unpacking, name: str, state: Tensor) -> None:
    weight = it.take(name)
    leaves = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
    absmax, quant_map, outer, outer_map = (it.take(f"{name}.{leaf}") for leaf in leaves)
    if weight is None or absmax is None or quant_map is None:
        it.refuse(state, f"lacks {name}, absmax and quant_map beside it")
    elif isinstance(found := _state(state), str):
        it.refuse(state, found)
    else:
        nested = None
        if outer is not None and outer_map is not None and "nested_blocksize" in found:
            nested = Nested(outer, outer_map, found["nested_blocksize"], found["nested_offset"])
        stored = Stored(weight, absmax, quant_map, nested, tuple(found["shape"]), found["blocksize"])
        if problems := list(stored.problems()):
            it.refuse(weight, "; ".join(problems))
        else:
            it.put(name, stored.matrix(name))


def _state(tensor: Tensor) -> Mapping[str, Any] | str:
    """Returns the JSON of a quant_state, or what is wrong with it."""
    if tensor.dtype != BYTE or tensor.nbytes > STATE_BYTES:
        return f"is {tensor.dtype} of {tensor.nbytes} bytes, expected uint8 and at most {STATE_BYTES}"
    try:
        found, _ = parse_json(tensor.read().tobytes(), STATE_ITEMS)
    except ValueError as error:
        return f"is no JSON: {error}"
    if not isinstance(found, Mapping):
        return "is JSON, but no object"
    sizes, size = found.get("shape"), found.get("blocksize")
    if not isinstance(sizes, list) or len(sizes) < 2 or any(type(dim) is not int or dim < 1 for dim in sizes):
        return f"has shape {str(sizes)[:100]}, expected two or more sizes"
    if type(size) is not int or size not in BLOCK_SIZES:
        return f"has blocksize {str(size)[:100]}, expected a power of two from {BLOCK_SIZES[0]} to {BLOCK_SIZES[-1]}"
    outer, offset = found.get("nested_blocksize"), found.get("nested_offset")
    if outer is None and offset is None:
        return found
    if type(outer) is not int or outer not in BLOCK_SIZES or type(offset) is not float or not math.isfinite(offset):
        return f"has nested_blocksize {str(outer)[:100]} and nested_offset {str(offset)[:100]}"
    return found


@dataclass(frozen=True)
class Stored:
    """The tensors of one tensor [..., rows, columns], in blocks of `size` numbers that may go on in the next row."""

    packed: Tensor
    absmax: Tensor
    quant_map: Tensor
    nested: Nested | None
    shape: tuple[int, ...]
    size: int

    def matrix(self, name: str) -> Matrix:
        """Returns the tensor; a block of its form is the largest part of these blocks that fits into rows."""
        scale = BlockScales(self.absmax, self.nested, self.shape, self.size)
        form = Form(CODE, (1, scale.together), tuple(self.quant_map.read().tolist()))
        more = () if self.nested is None else (self.nested.absmax, self.nested.quant_map)
        return Matrix(
            name, form, (self.packed, self.absmax, self.quant_map, *more), Halves(self.packed, self.shape), scale
        )

    def problems(self) -> Iterator[str]:
        """Yields what does not fit."""
        count, nested = prod(self.shape), self.nested
        wanted = -(-count // 2)
        if self.packed.nbytes != wanted or prod(self.packed.shape) * self.packed.dtype.itemsize != wanted:
            yield f"has {self.packed.nbytes} bytes, expected {wanted} for {list(self.shape)}"
        blocks = -(-count // self.size)
        yield from misshapen(self.absmax, "its absmax is", (blocks,), FLOAT32 if nested is None else BYTE)
        yield from misshapen(self.quant_map, "its quant_map is", (1 << BITS,), FLOAT32)
        if self.quant_map.dtype == FLOAT32 and not np.isfinite(self.quant_map.read()).all():
            yield "its quant_map has NaN or Inf"
        if nested is not None:
            yield from misshapen(nested.absmax, "its nested_absmax is", (-(-blocks // nested.size),), FLOAT32)
            yield from misshapen(nested.quant_map, "its nested_quant_map is", (NESTED_MAP,), FLOAT32)


@dataclass(frozen=True, eq=False)
class Halves:
    """The codes of a tensor, two in a byte and the first one in the high half, whatever dtype the bytes have."""

    packed: Tensor
    shape: tuple[int, ...]
    dtype: np.dtype = CODE

    def read(self, index: Index = ()) -> np.ndarray:
        rows, width, columns = _rows(self.shape, index), self.shape[-1], index[-1]
        first, stop = (int(rows.min()), int(rows.max()) + 1) if rows.size else (0, 0)
        run = self._bytes.read((slice(first * width // 2, -(-stop * width // 2)),))
        if width % 2:  # rows begin within bytes
            numbers = _numbers(run)[first * width % 2 :][: (stop - first) * width]
            return numbers.reshape(stop - first, width)[rows - first, columns].view(CODE)
        left = columns.start // 2
        packed = run.reshape(stop - first, width // 2)[rows - first, left : -(-columns.stop // 2)]
        inside = slice(columns.start - 2 * left, columns.stop - 2 * left, columns.step)
        return _numbers(packed)[..., inside].view(CODE)

    @property
    def _bytes(self) -> Tensor:
        return replace(self.packed, shape=(self.packed.nbytes,), dtype=BYTE, strides=(1,))


@dataclass(frozen=True, eq=False)
class BlockScales:
    """The scale of each few numbers of a row, which are in one block of `size` numbers."""

    absmax: Tensor
    nested: Nested | None
    of: tuple[int, ...]
    size: int
    dtype: np.dtype = FLOAT32

    @property
    def together(self) -> int:
        """So many numbers of a row have one scale."""
        return math.gcd(self.size, self.of[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.of[:-1], self.of[-1] // self.together)

    def read(self, index: Index = ()) -> np.ndarray:
        columns = np.arange(self.shape[-1])[index[-1]] * self.together
        places = (_rows(self.of, index)[..., None] * self.of[-1] + columns) // self.size
        first, stop = (int(places.min()), int(places.max()) + 1) if places.size else (0, 0)
        found = self.absmax.read((slice(first, stop),))
        if self.nested is not None:
            outer = slice(first // self.nested.size, -(-stop // self.nested.size))
            factors = self.nested.absmax.read((outer,))[np.arange(first, stop) // self.nested.size - outer.start]
            found = self.nested.quant_map.read()[found] * factors + np.float32(self.nested.offset)
        return found[places - first]


def _rows(shape: tuple[int, ...], index: Index) -> np.ndarray:
    """Returns the number of each row of a slice, counted over all leading dimensions."""
    rows = np.zeros((1,) * (len(shape) - 1), np.int64)
    for dim, part in enumerate(index[:-1]):
        taken = np.arange(*part.indices(shape[dim])) * prod(shape[dim + 1 : -1])
        rows = rows + np.expand_dims(taken, [other for other in range(len(shape) - 1) if other != dim])
    return rows


def _numbers(packed: np.ndarray) -> np.ndarray:
    """Returns the two numbers of each byte, the one in the high half first."""
    return np.stack([packed >> 4, packed & 15], axis=-1).reshape(*packed.shape[:-1], 2 * packed.shape[-1])
