"""NVIDIA's ModelOpt: fp8, NVFP4 and AWQ's int4, told apart by dtypes and shapes.

Its global scale of NVFP4 is a factor; that of compressed-tensors is a divisor. AWQ's int4 has two rows in a byte, and a
scale for the inputs (`pre_quant_scale`), which belongs to the weights here.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from easydel.checkpoint import Tensor
from easydel.weights.formats.compressed_tensors import NVFP4_COLUMNS
from easydel.weights.formats.fp8 import MX_COLUMNS, OF_ACTIVATIONS, fp4
from easydel.weights.formats.matrix import FLOAT8, Pieces, groups_of, if_fitting, put
from easydel.weights.formats.parts import Stream, integers
from easydel.weights.formats.unpacking import Unpacking

BLOCK = (128, 128)


def read_modelopt(it: Unpacking) -> None:
    """Puts a matrix in the place of each weight with scales."""
    it.drop(*OF_ACTIVATIONS)
    for stem, weight in it.ending(".weight"):
        scale = it.take(f"{stem}.weight_scale") if weight.dtype in (*FLOAT8, np.uint8) else None
        if scale is None:
            continue
        it.take(weight.name)
        total, gain = it.take(f"{stem}.weight_scale_2"), it.take(f"{stem}.pre_quant_scale")
        pieces = _pieces(weight, scale, total, it.settings.get("group_size"))
        if isinstance(pieces, str):
            it.refuse(weight, pieces)
        else:
            pieces.gain = gain
            put(it, weight.name, (weight, scale, total, gain), pieces)


def _pieces(weight: Tensor, scale: Tensor, total: Tensor | None, stated: object) -> Pieces | str:
    if weight.dtype in FLOAT8:
        if total is not None:
            return "has a second scale, which no weights of 8 bits have"
        if scale.dtype == np.uint8:
            return Pieces(weight, scale, (1, MX_COLUMNS))
        blocks = scale.shape[::2] if len(scale.shape) == 2 * len(weight.shape) else scale.shape  # [rows, 1, columns, 1]
        return Pieces(weight, scale, if_fitting(weight.shape, blocks, BLOCK))
    if scale.dtype == np.uint8:
        return Pieces(fp4(weight), scale, (1, MX_COLUMNS))
    if scale.dtype == ml_dtypes.float8_e4m3fn:
        if total is None:
            return "has no weight_scale_2 beside it"
        return Pieces(fp4(weight), scale, (1, NVFP4_COLUMNS), factor=total)
    if total is not None or len(weight.shape) != 2 or len(scale.shape) != 2:
        return "is uint8 with scales of a kind that is not known here (FP8, NVFP4 and W4A16_AWQ are)"
    rows, columns = weight.shape
    code = Stream(weight, 4, 0, 2 * rows, integers(4, signed=True))
    group = stated if type(stated) is int and stated > 0 else groups_of(columns, scale.shape[-1])
    return Pieces(code, scale, (1, group or columns))
