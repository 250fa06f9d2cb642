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
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from easydel.checkpoint import Tensor
from easydel.checkpoint.strict import parse_json
from easydel.weights.coded import Form
from easydel.weights.expressions import Index
from easydel.weights.formats.bits import unsigned
from easydel.weights.formats.packed import BYTE, PackedTensor, misshapen
from easydel.weights.formats.unpacking import Unpacking
from easydel.weights.sources import FLOAT32

BITS = 4
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


@dataclass(frozen=True, eq=False)
class BnbTensor(PackedTensor):
    """A tensor [..., rows, columns] of 4 bits, in blocks of `size` numbers that may go on from one row to the next.

    A block of the form is the largest part of such a block that fits into rows.
    """

    name: str
    packed: Tensor
    absmax: Tensor
    quant_map: Tensor
    nested: Nested | None
    sizes: tuple[int, ...]
    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.sizes

    @property
    def nbytes(self) -> int:
        return super().nbytes + (0 if self.nested is None else self.nested.absmax.nbytes + self.nested.quant_map.nbytes)

    @property
    def form(self) -> Form:
        return Form(unsigned(BITS), (1, math.gcd(self.size, self.shape[-1])), self._table)

    def codes(self, index: Index) -> np.ndarray:
        rows, width, columns = self._rows(index), self.shape[-1], index[-1]
        first, stop = (int(rows.min()), int(rows.max()) + 1) if rows.size else (0, 0)
        run = _as_bytes(self.packed).read((slice(first * width // 2, -(-stop * width // 2)),))
        if width % 2:  # rows begin within bytes
            numbers = _numbers(run)[first * width % 2 :][: (stop - first) * width]
            return numbers.reshape(stop - first, width)[rows - first, columns].view(unsigned(BITS))
        left = columns.start // 2
        packed = run.reshape(stop - first, width // 2)[rows - first, left : -(-columns.stop // 2)]
        inside = slice(columns.start - 2 * left, columns.stop - 2 * left, columns.step)
        return _numbers(packed)[..., inside].view(unsigned(BITS))

    def scales(self, index: Index) -> np.ndarray:
        blocks = np.arange(self.form.blocks(self.shape)[-1])[index[-1]] * self.form.block[1]
        places = (self._rows(index)[..., None] * self.shape[-1] + blocks) // self.size
        first, stop = (int(places.min()), int(places.max()) + 1) if places.size else (0, 0)
        found = self.absmax.read((slice(first, stop),))
        if self.nested is not None:
            outer = slice(first // self.nested.size, -(-stop // self.nested.size))
            factors = self.nested.absmax.read((outer,))[np.arange(first, stop) // self.nested.size - outer.start]
            found = self.nested.quant_map.read()[found] * factors + np.float32(self.nested.offset)
        return found.astype(FLOAT32)[places - first]

    @cached_property
    def _table(self) -> tuple[float, ...]:
        return tuple(self.quant_map.read().tolist())

    def _rows(self, index: Index) -> np.ndarray:
        """Returns the number of each row of a slice, counted over all leading dimensions."""
        return np.arange(prod(self.shape[:-1])).reshape(self.shape[:-1])[index[:-1]]


def read_4bit(it: Unpacking) -> None:
    """Puts a tensor in the place of each weight with a quant_state, and of the tensors beside it."""
    for kind in KINDS:
        for name, state in it.ending(f"{STATE}{kind}"):
            it.take(state.name)
            weight = it.take(name)
            absmax, quant_map, outer, outer_map = (
                it.take(f"{name}.{leaf}") for leaf in ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
            )
            if weight is None or absmax is None or quant_map is None:
                it.refuse(state, f"lacks {name}, absmax and quant_map beside it")
            elif isinstance(found := _state(state), str):
                it.refuse(state, found)
            else:
                nested = None
                if outer is not None and outer_map is not None and "nested_blocksize" in found:
                    nested = Nested(outer, outer_map, found["nested_blocksize"], found["nested_offset"])
                sizes = tuple(found["shape"])
                tensor = BnbTensor(name, weight, absmax, quant_map, nested, sizes, found["blocksize"])
                if problems := list(_problems(tensor)):
                    it.refuse(weight, "; ".join(problems))
                else:
                    it.put(name, tensor)


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


def _problems(tensor: BnbTensor) -> Iterator[str]:
    count, nested = prod(tensor.shape), tensor.nested
    wanted = -(-count // 2)
    if tensor.packed.nbytes != wanted or prod(tensor.packed.shape) * tensor.packed.dtype.itemsize != wanted:
        yield f"has {tensor.packed.nbytes} bytes, expected {wanted} for {list(tensor.shape)}"
    blocks = -(-count // tensor.size)
    yield from misshapen(tensor.absmax, "its absmax is", (blocks,), FLOAT32 if nested is None else BYTE)
    yield from misshapen(tensor.quant_map, "its quant_map is", (1 << BITS,), FLOAT32)
    if nested is not None:
        yield from misshapen(nested.absmax, "its nested_absmax is", (-(-blocks // nested.size),), FLOAT32)
        yield from misshapen(nested.quant_map, "its nested_quant_map is", (NESTED_MAP,), FLOAT32)


def _as_bytes(packed: Tensor) -> Tensor:
    """Returns the same bytes as one row of uint8: bnb_4bit_quant_storage may call them floats."""
    return replace(packed, shape=(packed.nbytes,), dtype=BYTE, strides=(1,))


def _numbers(packed: np.ndarray) -> np.ndarray:
    """Returns the two numbers of each byte, the one in the high half first."""
    return np.stack([packed >> 4, packed & 15], axis=-1).reshape(*packed.shape[:-1], 2 * packed.shape[-1])
