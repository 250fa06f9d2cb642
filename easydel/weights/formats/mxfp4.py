"""MXFP4, the format of GPT-OSS's experts: 4 bits a number, and an exponent for each block of 32 numbers.

The OCP Microscaling Formats (MX) Specification v1.0, 2023. For the tensor X [experts, in, out] a checkpoint has
X_blocks [experts, out, in / 32, 16], two numbers in a byte, the first one in the low half, and X_scales
[experts, out, in / 32], exponents of two with an offset of 127, where 255 means NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np

from easydel.checkpoint import Checkpoint, Tensor
from easydel.errors import UnsupportedModelError
from easydel.weights.formats.unpacking import Unpacking

BLOCKS, SCALES = "_blocks", "_scales"
BLOCK, BLOCK_BYTES = 32, 16
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True, eq=False)
class Mxfp4Tensor:
    """Numbers from two tensors of the file, decoded for whichever part is read. bfloat16 holds them exactly.

    If not `transposed`, the shape is the file's, [experts, out, in].
    """

    name: str
    blocks: Tensor
    scales: Tensor
    transposed: bool = True

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(ml_dtypes.bfloat16)

    @property
    def file(self) -> Path:
        return self.blocks.file

    @property
    def nbytes(self) -> int:
        return self.blocks.nbytes + self.scales.nbytes

    @property
    def shape(self) -> tuple[int, ...]:
        experts, outputs, blocks, _ = self.blocks.shape
        return (experts, blocks * BLOCK, outputs) if self.transposed else (experts, outputs, blocks * BLOCK)

    @property
    def turned(self) -> Mxfp4Tensor:
        return replace(self, transposed=not self.transposed)

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Returns the slice `index`, which must have positive steps, as float32."""
        experts, *sides = (*index, *[slice(None)] * (3 - len(index)))
        if self.transposed:
            return self.turned.read((experts, *sides[::-1])).swapaxes(1, 2)
        outputs, inputs = sides
        start, stop, step = inputs.indices(self.shape[-1])
        first, last = start // BLOCK, -(-stop // BLOCK)
        packed, scales = (part.read((experts, outputs, slice(first, last))) for part in (self.blocks, self.scales))
        values = _pairs()[packed].view(np.float32)  # 32 of each block, in the last dimension
        with np.errstate(over="ignore"):  # overflow gives Inf, which loading finds
            values *= _powers()[scales][..., None]
        rows = values.reshape(*values.shape[:2], values.shape[2] * BLOCK)
        return rows[..., start - first * BLOCK : stop - first * BLOCK : step]


def read_mxfp4(it: Unpacking) -> None:
    """Puts one tensor in the place of each pair of blocks and scales."""
    for stem, blocks in it.ending(BLOCKS):
        scales = it.take(f"{stem}{SCALES}")
        it.take(blocks.name)
        if scales is None:
            it.refuse(blocks, f"has no {stem}{SCALES} beside it")
        elif problem := _problem(blocks, scales):
            it.refuse(blocks, problem)
        else:
            it.put(stem, Mxfp4Tensor(stem, blocks, scales))


def refuse_remote(checkpoint: Checkpoint) -> None:
    """Raises UnsupportedModelError for weights on another machine: each part of a tensor would fetch all of it."""
    if any(tensor.source is not None for tensor in checkpoint.values()):
        raise UnsupportedModelError(
            "MXFP4 weights cannot be streamed", file=checkpoint.catalog, hint="load them without stream=True"
        )


def _problem(blocks: Tensor, scales: Tensor) -> str | None:
    if blocks.dtype != np.uint8 or scales.dtype != np.uint8:
        return f"is {blocks.dtype}, its scales are {scales.dtype}, expected uint8 for both"
    if len(blocks.shape) != 4 or blocks.shape[-1] != BLOCK_BYTES or scales.shape != blocks.shape[:-1]:
        expected = f"[experts, outputs, blocks, {BLOCK_BYTES}] and the same without the last"
        return f"is {list(blocks.shape)}, its scales are {list(scales.shape)}, expected {expected}"
    return None


@cache
def _pairs() -> np.ndarray:
    """Returns the two numbers of each byte, as float32 side by side in 8 bytes."""
    values = np.array([*MAGNITUDES, *(-magnitude for magnitude in MAGNITUDES)], np.float32)
    byte = np.arange(256)
    return np.stack([values[byte & 15], values[byte >> 4]], axis=-1).view(np.uint64)[:, 0]


@cache
def _powers() -> np.ndarray:
    """Returns the power of two of each scale."""
    powers = np.ldexp(np.float32(1), np.arange(-127, 129)).astype(np.float32)
    powers[255] = np.nan
    return powers
