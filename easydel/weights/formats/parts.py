"""Arrays of a checkpoint that are not as they lie in the file: numbers of a few bits, scales of another shape.

A part reads any slice of itself, from no more of the file than the slice needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import gcd
from typing import Protocol

import ml_dtypes
import numpy as np

from easydel.weights.expressions import Index

BYTE = 8
FLOAT4 = np.dtype(ml_dtypes.float4_e2m1fn)
FLOAT6 = np.dtype(ml_dtypes.float6_e2m3fn)
EXPONENT = np.dtype(ml_dtypes.float8_e8m0fnu)


class Part(Protocol):
    """An array of which any slice can be read; slices have both ends, and positive steps."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def read(self, index: Index = ()) -> np.ndarray: ...


def integers(bits: int, *, signed: bool) -> np.dtype:
    """Returns the narrowest dtype for integers of that many bits."""
    width = next(width for width in (2, 4, BYTE) if width >= bits)
    name = f"{'int' if signed else 'uint'}{width}"
    return np.dtype(name if width == BYTE else getattr(ml_dtypes, name))


# The highest bit of each number in a byte, by the bits of a number.
HIGHEST = {2: np.uint8(0b10101010), 4: np.uint8(0b10001000)}


@dataclass(frozen=True, eq=False)
class Stream:
    """Numbers of `bits` bits in one little-endian stream along dimension `dim` of an integer array.

    The first number is in the lowest bits. There are `count` in a row of the array's last words, which may have room
    for more. Codes are the stored numbers less `minus`, as `dtype`; other dtypes than integers have just these bits.
    """

    of: Part
    bits: int
    dim: int
    count: int
    dtype: np.dtype
    minus: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.of.shape)
        shape[self.dim] = self.count
        return tuple(shape)

    def read(self, index: Index = ()) -> np.ndarray:
        packed, inside = self._window(index)
        numbers = unpacked_bits(packed, self.bits, inside.stop)[..., inside]
        return np.moveaxis(as_codes(numbers, self.minus, self.dtype), -1, self.dim)

    def held(self, index: Index, bits: int, dim: int) -> np.ndarray | None:
        """Returns the bytes of a slice with `bits` bits a number along `dim`, which is put last: the stream's own.

        None where the stream has other bytes: numbers of another size, or along another dimension, or a slice that
        begins or ends within a byte.
        """
        part, together = index[self.dim], BYTE // bits
        whole = (
            part.step in (1, None) and part.start % together == 0 == part.stop % together and part.stop >= part.start
        )
        if (
            dim != self.dim
            or bits != self.bits
            or bits not in HIGHEST
            or not whole
            or self.minus not in (0, 1 << (bits - 1))
        ):
            return None
        packed, _ = self._window(index)
        own = packed[..., : (part.stop - part.start) // together]
        return own ^ HIGHEST[bits] if self.minus else own  # half of their range less: the highest bit the other way

    def read_floats(self, index: Index) -> np.ndarray:
        """Returns FP4 numbers as float32: both of a byte are looked up at once."""
        assert self.dtype == FLOAT4
        assert self.dim == len(index) - 1
        packed, inside = self._window(index)
        return _pairs().take(packed).view(np.float32)[..., inside]

    def _window(self, index: Index) -> tuple[np.ndarray, slice]:
        """Returns bytes that hold a slice, with the numbers in the last dimension, and the slice of those numbers."""
        wanted, word = list(index), self.of.dtype.itemsize
        part = wanted[self.dim]
        together = BYTE // gcd(BYTE, self.bits)  # that many numbers fill whole bytes
        start = part.start // together * together
        first, last = start * self.bits // BYTE, -(-max(part.stop, start) * self.bits // BYTE)
        wanted[self.dim] = slice(first // word, -(-last // word))
        rows = np.moveaxis(self.of.read(tuple(wanted)), self.dim, -1)
        packed = np.ascontiguousarray(rows).view(np.uint8)[..., first % word :]
        return packed, slice(part.start - start, max(part.stop, start) - start, part.step)


@cache
def _pairs() -> np.ndarray:
    """Returns the two FP4 numbers of each byte, as float32 side by side in 8 bytes."""
    byte = np.arange(256, dtype=np.uint8)
    return np.stack([byte & 15, byte >> 4], axis=-1).view(FLOAT4).astype(np.float32).view(np.uint64)[:, 0]


def unpacked_bits(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Returns the first `count` numbers of each row of bytes, as uint8."""
    if bits == BYTE:
        return packed[..., :count]
    together, size = BYTE // gcd(BYTE, bits), bits // gcd(BYTE, bits)
    groups = -(-count // together)
    if (lacking := groups * size - packed.shape[-1]) > 0:
        packed = np.concatenate([packed, np.zeros((*packed.shape[:-1], lacking), np.uint8)], axis=-1)
    packed = packed[..., : groups * size].reshape(*packed.shape[:-1], groups, size)
    numbers = np.empty((*packed.shape[:-1], together), np.uint8)
    for place in range(together):
        byte, low = divmod(place * bits, BYTE)
        number = packed[..., byte] >> low
        if low + bits > BYTE:
            number |= packed[..., byte + 1] << (BYTE - low)
        np.bitwise_and(number, 2**bits - 1, out=numbers[..., place])
    return numbers.reshape(*packed.shape[:-2], groups * together)[..., :count]


def as_codes(numbers: np.ndarray, minus: int, dtype: np.dtype) -> np.ndarray:
    """Returns stored numbers less `minus` in a narrow dtype, which numpy keeps in the lowest bits of bytes."""
    if minus:
        numbers = (numbers - np.uint8(minus)) & np.uint8(2 ** ml_dtypes.iinfo(dtype).bits - 1)
    return numbers.view(dtype)


@dataclass(frozen=True, eq=False)
class Fields:
    """Numbers of `bits` bits in the words of the last dimension, none of which lies in two words.

    There are `count` of them in a row. Codes are as in a `Stream`.
    """

    of: Part
    bits: int
    count: int
    dtype: np.dtype
    minus: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.of.shape[:-1], self.count)

    def read(self, index: Index = ()) -> np.ndarray:
        *leading, part = index
        size = self.of.dtype.itemsize * BYTE
        room = size // self.bits
        first, last = part.start // room, -(-part.stop // room)
        words = self.of.read((*leading, slice(first, last))).view(f"u{size // BYTE}")
        shifts = np.arange(room, dtype=words.dtype) * self.bits
        numbers = ((words[..., None] >> shifts) & (2**self.bits - 1)).astype(np.uint8)
        rows = numbers.reshape(*words.shape[:-1], words.shape[-1] * room)
        base = first * room
        return as_codes(rows[..., part.start - base : part.stop - base : part.step or 1], self.minus, self.dtype)


@dataclass(frozen=True, eq=False)
class Arranged:
    """An array with its dimensions in another order: `dims` says which of its own each of ours is.

    None stands for a dimension of size 1; own dimensions that no other stands for are of size 1.
    """

    of: Part
    dims: tuple[int | None, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.of.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(1 if dim is None else self.of.shape[dim] for dim in self.dims)

    @property
    def by_columns(self) -> bool:
        """True if its last two dimensions are swapped."""
        return len(self.dims) > 1 and self.dims[-2:] == (len(self.dims) - 1, len(self.dims) - 2)

    def held(self, index: Index, bits: int, dim: int) -> np.ndarray | None:
        """Returns what the array returns, if that is a stream; None where its other dimensions are in another order."""
        own = self.dims[dim]
        others = [other for other in self.dims if other != own]
        if not isinstance(self.of, Stream) or own is None or others != [one for one in range(len(index)) if one != own]:
            return None
        return self.of.held(tuple(index[self.dims.index(one)] for one in range(len(index))), bits, own)

    def read(self, index: Index = ()) -> np.ndarray:
        own = [slice(0, 1)] * len(self.of.shape)
        for dim, part in zip(self.dims, index, strict=True):
            if dim is not None:
                own[dim] = part
        found = self.of.read(tuple(own))
        kept = [dim for dim in self.dims if dim is not None]
        others = tuple(dim for dim in range(found.ndim) if dim not in kept)
        ordered = np.squeeze(found, others).transpose(np.argsort(np.argsort(kept)))
        units = tuple(place for place, dim in enumerate(self.dims) if dim is None)
        return np.expand_dims(ordered, units)[
            tuple(part if dim is None else slice(None) for dim, part in zip(self.dims, index, strict=True))
        ]


def swapped(of: Part) -> Part:
    """Returns an array with its last two dimensions swapped."""
    dims = list(range(len(of.shape)))
    return Arranged(of, (*dims[:-2], dims[-1], dims[-2]))


@dataclass(frozen=True, eq=False)
class Joined:
    """An array with its last two dimensions as one."""

    of: Part

    @property
    def dtype(self) -> np.dtype:
        return self.of.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        *leading, outer, inner = self.of.shape
        return (*leading, outer * inner)

    def read(self, index: Index = ()) -> np.ndarray:
        *leading, part = index
        inner = self.of.shape[-1]
        first, last = part.start // inner, -(-part.stop // inner)
        found = self.of.read((*leading, slice(first, last)))
        rows = found.reshape(*found.shape[:-2], found.shape[-2] * inner)
        return rows[..., part.start - first * inner : part.stop - first * inner : part.step or 1]


@dataclass(frozen=True, eq=False)
class Computed:
    """An array with `function` applied to each number, which makes it `dtype`."""

    of: Part
    function: Callable[[np.ndarray], np.ndarray]
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape

    def read(self, index: Index = ()) -> np.ndarray:
        return self.function(self.of.read(index))


def viewed(of: Part, dtype: np.dtype) -> Part:
    """Returns an array whose bytes are numbers of another dtype of that size."""
    return Computed(of, lambda found: found.view(dtype), dtype)
