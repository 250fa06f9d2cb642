"""GGUF's blocks as codes with scales: types of 4 to 8 bits whose blocks have a scale, and perhaps an offset.

Layouts as in llama.cpp's ggml-common.h and ggml-quants.c. A block is 32 numbers of a row; of the K types it is 256 in
groups with scales of their own, which are products of two stored numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeGuard

import ml_dtypes
import numpy as np

from easydel.checkpoint.blocks import block_layout
from easydel.weights.coded import CodedTensor, Form
from easydel.weights.expressions import Index
from easydel.weights.gguf import HFTensor
from easydel.weights.gguf_tensors import AllRows
from easydel.weights.sources import FLOAT32, TensorSource, Turned

BYTE, HALF, INT4, UINT4 = (np.dtype(kind) for kind in (np.uint8, np.float16, ml_dtypes.int4, ml_dtypes.uint4))
Read = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Layout:
    """A type of block: its codes' dtype, the numbers of a group, and functions from blocks [..., bytes].

    `codes` gives [..., numbers] as uint8 or int8; `scales` and `offsets` give [..., groups].
    """

    code: np.dtype
    group: int
    codes: Read
    scales: Read
    scale_dtype: np.dtype = HALF
    offsets: Read | None = None

    @property
    def shift(self) -> Literal["", "offset"]:
        return "" if self.offsets is None else "offset"


def by_codes(tensors: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
    """Returns the tensors of a GGUF file, as codes where their type of block allows it."""
    return {name: _by_codes(of) for name, of in tensors.items()}


def _by_codes(tensor: TensorSource) -> TensorSource:
    if isinstance(tensor, AllRows):
        return AllRows(_by_codes(tensor.of))
    if (
        isinstance(tensor, HFTensor)
        and tensor.transposed
        and is_coded(untransposed := replace(tensor, transposed=False))
    ):
        return Turned(CodedBlocks(untransposed))
    return CodedBlocks(tensor) if is_coded(tensor) else tensor


def is_coded(tensor: TensorSource) -> TypeGuard[HFTensor]:
    """True for matrices whose numbers are those of the file, but for the order of rows."""
    return (
        isinstance(tensor, HFTensor)
        and tensor.tensor.encoding in LAYOUTS
        and not tensor.transposed
        and tensor.add is None
        and len(tensor.shape) > 1
    )


class CodedBlocks(CodedTensor):
    """A tensor of a GGUF file by its codes, scales and offsets."""

    def __init__(self, of: HFTensor):
        encoding = of.tensor.encoding
        assert encoding is not None
        self.of, self.layout, self.name = of, LAYOUTS[encoding], of.name
        self.elements, size = block_layout(encoding)
        self.form = Form(self.layout.code, (1, self.layout.group), shift=self.layout.shift)
        self.size = size
        tensor, row = of.tensor, of.tensor.shape[-1] // self.elements * size
        shape, strides = (*tensor.shape[:-1], row), (*tensor.strides[:-1], 1)
        self.bytes = replace(of, tensor=replace(tensor, encoding=None, dtype=BYTE, shape=shape, strides=strides))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape

    @property
    def file(self) -> Path:
        return self.of.file

    @property
    def nbytes(self) -> int:
        return self.of.nbytes

    @property
    def scale_dtype(self) -> np.dtype:
        return self.layout.scale_dtype

    @property
    def shift_dtype(self) -> np.dtype:
        return self.layout.scale_dtype

    def read(self, index: Index = ()) -> np.ndarray:
        return self.of.read(index)

    def codes(self, index: Index) -> np.ndarray:
        return self._within(index, self.elements, self.layout.codes).view(self.form.code)

    def scales(self, index: Index) -> np.ndarray:
        return self._within(index, self.elements // self.layout.group, self.layout.scales)

    def shifts(self, index: Index) -> np.ndarray:
        assert self.layout.offsets is not None
        return self._within(index, self.elements // self.layout.group, self.layout.offsets)

    def _within(self, index: Index, together: int, read: Read) -> np.ndarray:
        """Returns a slice of what `read` gives for blocks, `together` numbers for each."""
        *leading, part = index
        first, last = part.start // together, -(-part.stop // together)
        found = self.bytes.read((*leading, slice(first * self.size, last * self.size)))
        blocks = np.ascontiguousarray(found).reshape(*found.shape[:-1], last - first, self.size)
        numbers = read(blocks)
        rows = numbers.reshape(*found.shape[:-1], (last - first) * together)
        return rows[..., part.start - first * together : part.stop - first * together : part.step]


def _half(blocks: np.ndarray, place: int) -> np.ndarray:
    """Returns the float16 at that byte of each block, [..., 1]."""
    return blocks[..., place : place + 2].view("<f2")


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """Returns the low halves of bytes, then their high halves."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _fifth(blocks: np.ndarray, place: int) -> np.ndarray:
    """Returns 16 for each number whose bit is set in the 32 bits at that byte."""
    return np.unpackbits(blocks[..., place : place + 4], axis=-1, bitorder="little") << 4


def _less(codes: np.ndarray, middle: int, code: np.dtype) -> np.ndarray:
    """Returns codes less `middle`, in the lowest bits that the dtype has."""
    return codes - np.uint8(middle) & np.uint8(15 if code == INT4 else 255)


def _k_scales(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the 6 bits of each of 8 scales and offsets, which share 12 bytes from byte 4 on."""
    low, middle, high = (blocks[..., start : start + 4] for start in (4, 8, 12))
    scales = np.concatenate([low & 63, high & 15 | low >> 6 << 4], axis=-1)
    return scales, np.concatenate([middle & 63, high >> 4 | middle >> 6 << 4], axis=-1)


def _k_scale(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0).astype(FLOAT32) * _k_scales(blocks)[0].astype(FLOAT32)


def _k_offset(blocks: np.ndarray) -> np.ndarray:
    return -_half(blocks, 2).astype(FLOAT32) * _k_scales(blocks)[1].astype(FLOAT32)


def _by_half_rows(packed: np.ndarray, width: int) -> np.ndarray:
    """Returns the nibbles of bytes: low halves of `width` bytes, their high halves, those of the next ones, ..."""
    rows = packed.reshape(*packed.shape[:-1], packed.shape[-1] // width, width)
    return _nibbles(rows).reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def _q5_k(blocks: np.ndarray) -> np.ndarray:
    high = blocks[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return _by_half_rows(blocks[..., 48:176], 32) | high.reshape(*blocks.shape[:-1], 256) << 4


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    high = blocks[..., 128:192].reshape(*blocks.shape[:-1], 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    codes = _by_half_rows(blocks[..., :128], 64) | high.reshape(*blocks.shape[:-1], 256) << 4
    return _less(codes, 32, BYTE).view(np.int8)


def _q6_k_scale(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 208).astype(FLOAT32) * blocks[..., 192:208].view(np.int8).astype(FLOAT32)


LAYOUTS = {
    "Q4_0": Layout(INT4, 32, lambda b: _less(_nibbles(b[..., 2:]), 8, INT4), lambda b: _half(b, 0)),
    "Q4_1": Layout(UINT4, 32, lambda b: _nibbles(b[..., 4:]), lambda b: _half(b, 0), offsets=lambda b: _half(b, 2)),
    "Q5_0": Layout(
        np.dtype(np.int8),
        32,
        lambda b: _less(_nibbles(b[..., 6:]) | _fifth(b, 2), 16, BYTE),
        lambda b: _half(b, 0),
    ),
    "Q5_1": Layout(
        BYTE,
        32,
        lambda b: _nibbles(b[..., 8:]) | _fifth(b, 4),
        lambda b: _half(b, 0),
        offsets=lambda b: _half(b, 2),
    ),
    "Q8_0": Layout(np.dtype(np.int8), 32, lambda b: b[..., 2:], lambda b: _half(b, 0)),
    "Q4_K": Layout(UINT4, 32, lambda b: _by_half_rows(b[..., 16:], 32), _k_scale, FLOAT32, _k_offset),
    "Q5_K": Layout(BYTE, 32, _q5_k, _k_scale, FLOAT32, _k_offset),
    "Q6_K": Layout(np.dtype(np.int8), 16, _q6_k, _q6_k_scale, FLOAT32),
}
