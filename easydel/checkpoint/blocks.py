"""GGUF block quantization: sizes and decoding, by the name of the block type. Imports `gguf` only when called."""

from __future__ import annotations

from functools import cache

import numpy as np

_CHUNK = 1 << 18  # elements to decode at a time: they stay in the cache, and no second full array is needed


@cache
def block_layout(encoding: str) -> tuple[int, int]:
    """Returns (elements, bytes) of one block of the type named `encoding`, such as (32, 20) for Q4_1."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    return GGML_QUANT_SIZES[GGMLQuantizationType[encoding]]


@cache
def can_decode(encoding: str) -> bool:
    """True if the installed `gguf` package can turn blocks of this type into numbers."""
    _, size = block_layout(encoding)
    try:
        dequantize(np.zeros((1, 1, size), np.uint8), encoding)
    except NotImplementedError:
        return False
    return True


def dequantize(blocks: np.ndarray, encoding: str) -> np.ndarray:
    """Returns float32 values [..., blocks * elements] of `blocks`, uint8 [..., blocks, bytes of a block]."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize as decode

    elements, size = block_layout(encoding)
    kind = GGMLQuantizationType[encoding]
    *leading, count, _ = blocks.shape
    out = np.empty((*leading, count * elements), np.float32)
    if out.size == 0:
        return out
    rows = blocks.reshape(-1, size)
    decoded = out.reshape(-1, elements)
    step = _CHUNK // elements
    for start in range(0, len(rows), step):
        with np.errstate(over="ignore", invalid="ignore"):  # a scale may be Inf or NaN, and the values with it
            chunk = rows[start : start + step].reshape(1, -1)  # as one row: `decode` loops over rows in Python
            decoded[start : start + step] = decode(chunk, kind).reshape(-1, elements)
    return out
