"""MLX's formats, as mlx-lm writes them, and transformers' "metal", which is one of them under other names.

For W [..., out, in] of b bits in groups of g columns a file has weight uint32 [..., out, in * b / 32], packed along its
columns, and scales [..., out, in / g]. Mode "affine" has floats there, and biases of the same shape:
W = q * scale + bias. Modes mxfp4, nvfp4 and mxfp8 have small floats as codes, and scales of 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from easydel.checkpoint import Tensor
from easydel.weights.coded import Form
from easydel.weights.formats.checks import BYTE, FLOATS, misshapen
from easydel.weights.formats.matrix import Matrix
from easydel.weights.formats.parts import EXPONENT, FLOAT4, Stream, integers, viewed
from easydel.weights.formats.unpacking import Unpacking

AFFINE, AFFINE_BITS = "affine", (2, 3, 4, 5, 6, 8)
WORD, WORD_BITS = np.dtype(np.uint32), 32


class Small(NamedTuple):
    """A mode with small floats as codes: their dtype and bits, the columns of a block, and the dtype of a scale."""

    code: np.dtype
    bits: int
    block: int
    scale: np.dtype


FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)
MODES = {
    "mxfp4": Small(FLOAT4, 4, 32, EXPONENT),
    "nvfp4": Small(FLOAT4, 4, 16, FLOAT8),
    "mxfp8": Small(FLOAT8, 8, 32, EXPONENT),
}


def read_mlx(it: Unpacking) -> None:
    """Puts a matrix in the place of each weight with scales: also of embeddings, heads, routers and stacked experts."""
    for stem, scales in it.ending(".scales"):
        weight, biases = it.take(f"{stem}.weight"), it.take(f"{stem}.biases", f"{stem}.qbiases")
        it.take(scales.name)
        if weight is None:
            it.refuse(scales, f"has no {stem}.weight beside it")
        elif len(weight.shape) < 2:
            it.refuse(weight, f"is {list(weight.shape)}, expected at least two dimensions")
        elif isinstance(matrix := _matrix(it.settings, weight, scales, biases), str):
            it.refuse(weight, matrix)
        else:
            it.put(weight.name, matrix)


def _settings(settings: Mapping[str, Any], stem: str, *, affine: bool) -> Mapping[str, Any]:
    """Returns the settings of a module: its own entry under its name, or those of all.

    An entry without a mode is affine in MLX, also where the others are not: the file's biases tell.
    """
    own = settings.get(stem)
    chosen = own if isinstance(own, Mapping) else settings
    mode = chosen.get("mode") or (AFFINE if affine else settings.get("mode"))
    return {"bits": chosen.get("bits"), "group_size": chosen.get("group_size"), "mode": mode}


def _matrix(settings: Mapping[str, Any], weight: Tensor, scales: Tensor, biases: Tensor | None) -> Matrix | str:
    """Returns the matrix, or what is wrong with it."""
    own = _settings(settings, weight.name.removesuffix(".weight"), affine=biases is not None)
    mode, bits, group = (own[key] for key in ("mode", "bits", "group_size"))
    kind = MODES.get(mode) if isinstance(mode, str) else None
    if kind is not None:
        if (bits or kind.bits, group or kind.block) != (kind.bits, kind.block):
            return f"has mode={mode} with bits={bits} and group_size={group}, expected {kind.bits} and {kind.block}"
        return _floats(weight, scales, kind)
    if mode != AFFINE:
        return f"has mode={mode!r}, expected one of {AFFINE}, {', '.join(MODES)}"
    if biases is None:
        return "has scales and no biases beside it, which the mode affine needs"
    if (
        group is None and type(bits) is int and bits in AFFINE_BITS and scales.shape
    ):  # MLX has a default that may change
        group = weight.shape[-1] * 32 // bits // max(scales.shape[-1], 1)
    if type(bits) is not int or bits not in AFFINE_BITS or type(group) is not int or group <= 0:
        return f"has bits={bits} and group_size={group}, expected one of {AFFINE_BITS}, and more than 0"
    return _affine(weight, scales, biases, bits, group)


def _affine(weight: Tensor, scales: Tensor, biases: Tensor, bits: int, group: int) -> Matrix | str:
    """Returns a matrix of unsigned numbers, with a scale and an offset for each group of columns."""
    dtype, (*leading, words) = integers(bits, signed=False), weight.shape
    columns = words * WORD_BITS // bits
    blocks = (*leading, columns // group)
    problems = [
        *_uneven(weight, columns, bits, group),
        *misshapen(scales, "its scales are", blocks, *FLOATS),
        *misshapen(biases, "its biases are", blocks, *FLOATS),
    ]
    if problems:
        return "; ".join(problems)
    code = Stream(weight, bits, len(leading), columns, dtype)
    form = Form(dtype, (1, group), shift="offset")
    return Matrix(weight.name, form, (weight, scales, biases), code, scales, biases)


def _floats(weight: Tensor, scales: Tensor, kind: Small) -> Matrix | str:
    """Returns a matrix of small floats, with a scale of 8 bits for each block of columns."""
    *leading, words = weight.shape
    columns = words * WORD_BITS // kind.bits
    blocks = (*leading, columns // kind.block)
    if problems := [
        *_uneven(weight, columns, kind.bits, kind.block),
        *misshapen(scales, "its scales are", blocks, BYTE),
    ]:
        return "; ".join(problems)
    code = Stream(weight, kind.bits, len(leading), columns, kind.code)
    return Matrix(weight.name, Form(kind.code, (1, kind.block)), (weight, scales), code, viewed(scales, kind.scale))


def _uneven(weight: Tensor, columns: int, bits: int, group: int) -> Iterator[str]:
    if weight.dtype != WORD:
        yield f"is {weight.dtype}, expected {WORD}"
    if weight.shape[-1] * WORD_BITS % bits or columns % group:
        yield f"is {list(weight.shape)}, which groups of {group} numbers of {bits} bits do not fill"
