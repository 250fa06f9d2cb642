"""MXFP4 as GPT-OSS's experts have it: 4 bits a number, and an exponent for each block of 32 numbers.

The OCP Microscaling Formats (MX) Specification v1.0, 2023. For the tensor X [experts, in, out] a checkpoint has
X_blocks [experts, out, in / 32, 16], two numbers in a byte, the first one in the low half, and X_scales
[experts, out, in / 32], exponents of two with an offset of 127, where 255 means NaN.
"""

from __future__ import annotations

import numpy as np

from easydel.checkpoint import Tensor
from easydel.weights.formats.fp8 import MX_COLUMNS, fp4
from easydel.weights.formats.matrix import Pieces, put
from easydel.weights.formats.parts import Joined
from easydel.weights.formats.unpacking import Unpacking

BLOCKS, SCALES = "_blocks", "_scales"
BLOCK_BYTES = MX_COLUMNS // 2


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
            pieces = Pieces(fp4(Joined(blocks)), scales, (1, MX_COLUMNS), turned=True)
            put(it, stem, (blocks, scales), pieces)


def _problem(blocks: Tensor, scales: Tensor) -> str | None:
    if blocks.dtype != np.uint8 or scales.dtype != np.uint8:
        return f"is {blocks.dtype}, its scales are {scales.dtype}, expected uint8 for both"
    if len(blocks.shape) != 4 or blocks.shape[-1] != BLOCK_BYTES or scales.shape != blocks.shape[:-1]:
        expected = f"[experts, outputs, blocks, {BLOCK_BYTES}] and the same without the last"
        return f"is {list(blocks.shape)}, its scales are {list(scales.shape)}, expected {expected}"
    return None
