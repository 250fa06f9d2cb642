"""HQQ (Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models") as hqq writes it.

The numbers of W [out, in], row after row, fill a matrix in which each row (axis 1) or each column (axis 0) is a group, with
a scale and a zero: W = (q - zero) * scale. Rows of that matrix that lie far apart share an integer of W_q: of N rows at 4
bits, row r is in the high half of bytes r, and row r + N / 2 in the low one. Small tensors beside W_q say the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from easydel.checkpoint import Tensor
from easydel.weights.coded import Form
from easydel.weights.expressions import Index
from easydel.weights.formats.bits import unsigned
from easydel.weights.formats.packed import BYTE, FLOATS, WORD, PackedTensor, misshapen
from easydel.weights.formats.unpacking import Unpacking
from easydel.weights.sources import FLOAT32

FIELDS = {1: 8, 2: 4, 3: 10, 4: 2, 5: 1, 6: 1, 8: 1}  # bits -> numbers in an integer: int32 for 3 bits, else uint8
CODES = ".W_q"
SAID = ("nbits", "axis", "shape", "quant_scale", "quant_zero")
REPEATED = (
    "channel_wise",
    "compute_dtype",
    "encoded_state_dict",
    "group_size",
    "offload_meta",
    "optimize",
    "packing",
    "round_zero",
    "stores_quant_config",
    "unpack_view_dtype",
    "view_as_float",
)


@dataclass(frozen=True)
class Rows:
    """The matrix of groups, of `count` rows: `packed` holds several of them in each of its own."""

    packed: Tensor
    bits: int
    count: int

    @property
    def width(self) -> int:
        return self.packed.shape[1]

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Returns some rows' numbers, as uint8 [*rows.shape, width]."""
        together, fields = self.packed.shape[0], FIELDS[self.bits]
        found = self.packed.read()[rows % together]  # a view of the mapped file: only these rows are touched
        shifts = (self.bits * (fields - 1 - rows // together)).astype(found.dtype)
        return (found >> shifts[..., None] & (1 << self.bits) - 1).astype(np.uint8)

    def around(self, first: int, stop: int) -> tuple[np.ndarray, int]:
        """Returns the rows that hold the numbers from `first` to `stop`, and the place of the first one in them."""
        return np.arange(first // self.width, -(-stop // self.width)), first % self.width


@dataclass(frozen=True, eq=False)
class HqqTensor(PackedTensor):
    """A matrix whose groups are runs of numbers, and may go on from one row to the next."""

    name: str
    packed: Tensor
    scale: Tensor
    zero: Tensor
    sizes: tuple[int, int]
    bits: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.sizes

    @property
    def form(self) -> Form:
        return Form(unsigned(self.bits), (1, math.gcd(self.rows.width, self.shape[1])), shift="zero")

    @property
    def rows(self) -> Rows:
        return Rows(self.packed, self.bits, prod(self.sizes) // self.packed.shape[1])

    def codes(self, index: Index) -> np.ndarray:
        picked, columns = index
        width, group = self.shape[1], self.rows.width
        if width % group:
            return _run(self.rows.read, self.rows, index, width).view(unsigned(self.bits))
        taken = np.arange(picked.start, picked.stop, picked.step)
        first, last = columns.start // group, -(-columns.stop // group)
        numbers = self.rows.read(taken[:, None] * (width // group) + np.arange(first, last))
        base = first * group
        inside = slice(columns.start - base, columns.stop - base, columns.step)
        return numbers.reshape(len(taken), (last - first) * group)[:, inside].view(unsigned(self.bits))

    def scales(self, index: Index) -> np.ndarray:
        return self._of_blocks(self.scale, index)

    def shifts(self, index: Index) -> np.ndarray:
        return self._of_blocks(self.zero, index)

    def _of_blocks(self, stored: Tensor, index: Index) -> np.ndarray:
        rows, blocks = (np.arange(size)[part] for size, part in zip(self.form.blocks(self.shape), index, strict=True))
        places = (rows[:, None] * self.shape[1] + blocks * self.form.block[1]) // self.rows.width
        return stored.read()[:, 0][places]


@dataclass(frozen=True, eq=False)
class HqqColumns:
    """A matrix in which a group's numbers lie far apart (axis 0): it is read as floats alone."""

    inner: HqqTensor

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def file(self) -> Path:
        return self.inner.file

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape

    @property
    def dtype(self) -> np.dtype:
        return FLOAT32

    def read(self, index: Index = ()) -> np.ndarray:
        """Returns a slice as float32. Slices may lack ends, and have positive steps."""
        full = (*index, *[slice(None)] * (2 - len(index)))
        index = tuple(slice(*part.indices(size)) for part, size in zip(full, self.shape, strict=True))
        return _run(self._values, self.inner.rows, index, self.shape[1])

    def _values(self, rows: np.ndarray) -> np.ndarray:
        zero, scale = (part.read().astype(FLOAT32) for part in (self.inner.zero, self.inner.scale))
        with np.errstate(over="ignore", invalid="ignore"):  # NaN and Inf are found, and told with the tensor's name
            return (self.inner.rows.read(rows).astype(FLOAT32) - zero) * scale


def read_hqq(it: Unpacking) -> None:
    """Puts a matrix in the place of each W_q and of the tensors beside it."""
    for stem, packed in it.ending(CODES):
        it.take(packed.name)
        scale, zero = it.take(f"{stem}.scale"), it.take(f"{stem}.zero")
        said = {leaf: it.take(f"{stem}.{leaf}") for leaf in SAID}
        for leaf in REPEATED:
            it.take(f"{stem}.{leaf}")
        values = {leaf: _ints(tensor) for leaf, tensor in said.items()}
        if scale is None or zero is None or any(said[leaf] is None for leaf in ("nbits", "axis", "shape")):
            what = "with scale and zero quantized, too" if values["quant_scale"] or values["quant_zero"] else ""
            it.refuse(packed, f"lacks scale, zero, nbits, axis and shape beside it {what}".rstrip())
        elif problem := _problem(values):
            it.refuse(packed, problem)
        else:
            (bits,), (axis,), (outputs, inputs) = values["nbits"], values["axis"], values["shape"]
            tensor = HqqTensor(f"{stem}.weight", _integers(packed, bits), scale, zero, (outputs, inputs), bits)
            if problems := list(_problems(tensor, axis)):
                it.refuse(packed, "; ".join(problems))
            else:
                it.put(tensor.name, tensor if axis == 1 else HqqColumns(tensor))


def _ints(tensor: Tensor | None) -> tuple[int, ...]:
    """Returns the numbers of one of the small tensors; of none, and of one that is not small, no number."""
    if tensor is None or prod(tensor.shape) > 2 or tensor.dtype.kind not in "iu":
        return ()
    return tuple(tensor.read().reshape(-1).tolist())


def _problem(values: Mapping[str, tuple[int, ...]]) -> str | None:
    if any(values["quant_scale"]) or any(values["quant_zero"]):
        return "has scales or zeros that are quantized, too, which is not implemented"
    bits, axis, shape = (values[leaf] for leaf in ("nbits", "axis", "shape"))
    if len(bits) != 1 or bits[0] not in FIELDS or axis not in ((0,), (1,)) or len(shape) != 2 or min(shape) < 1:
        found = f"nbits={list(bits)}, axis={list(axis)} and shape={list(shape)}"
        return f"has {found}, expected one of {list(FIELDS)}, 0 or 1, and two sizes"
    return None


def _integers(packed: Tensor, bits: int) -> Tensor:
    """Returns W_q as the integers that it is made of: with view_as_float its dtype is that of activations."""
    dtype = WORD if bits == 3 else BYTE
    if packed.dtype == dtype or packed.dtype not in FLOATS or len(packed.shape) != 2:
        return packed
    rows, columns = packed.shape
    width = columns * packed.dtype.itemsize // dtype.itemsize
    return replace(packed, dtype=dtype, shape=(rows, width), strides=(width * dtype.itemsize, dtype.itemsize))


def _problems(tensor: HqqTensor, axis: int) -> Iterator[str]:
    packed, count = tensor.packed, prod(tensor.shape)
    if len(packed.shape) != 2 or not packed.shape[1] or count % packed.shape[1]:
        yield f"is {list(packed.shape)}, whose rows do not divide the {count} numbers of {list(tensor.shape)}"
        return
    rows, width = count // packed.shape[1], packed.shape[1]
    wanted = (-(-rows // FIELDS[tensor.bits]), width)
    yield from misshapen(packed, "is", wanted, WORD if tensor.bits == 3 else BYTE)
    of_groups = (rows, 1) if axis == 1 else (1, width)
    yield from misshapen(tensor.scale, "its scale is", of_groups, *FLOATS)
    yield from misshapen(tensor.zero, "its zero is", of_groups, *FLOATS)


def _run(read: Callable[[np.ndarray], np.ndarray], groups: Rows, index: Index, width: int) -> np.ndarray:
    """Returns a slice of a matrix of `width` columns out of whatever `read` gives for rows of the matrix of groups."""
    rows, columns = index
    taken = np.arange(rows.start, rows.stop, rows.step)
    first, stop = (int(taken[0]), int(taken[-1]) + 1) if len(taken) else (0, 0)
    wanted, base = groups.around(first * width, stop * width)
    run = read(wanted).reshape(-1)[base : base + (stop - first) * width]
    return run.reshape(stop - first, width)[taken - first, columns]
