"""Weights of 8 bits in floating point, with a scale per tensor, row or block beside them.

DeepSeek-V3's [128, 128] blocks (`weight_scale_inv`), Mistral's and AutoFP8's scale per tensor, fbgemm's per row,
MXFP8's exponent per 32 columns, and DeepSeek-V4's experts of 4 bits. Names and shapes of scales tell which: a config
may be wrong (DeepSeek-V3.1 states exponents and stores float32), and lists of modules left alone have many notations.
"""

from __future__ import annotations

import numpy as np

from easydel.checkpoint import Tensor
from easydel.weights.formats.matrix import FLOAT8, Pieces, if_fitting, pair_of, put
from easydel.weights.formats.parts import EXPONENT, FLOAT4, Part, Stream, swapped
from easydel.weights.formats.unpacking import Unpacking

SCALES = ("weight_scale_inv", "weight_scale", "qscale_weight", "scale")
OF_ACTIVATIONS = (
    *("activation_scale", ".input_scale", ".input_scale_ub", ".k_scale", ".v_scale", ".q_scale", ".qscale_act"),
    *(".kv_scale", ".output_scale"),
)
MX_COLUMNS = 32


def read_fp8(it: Unpacking) -> None:
    """Puts a matrix in the place of each tensor of 8 bits with a scale beside it."""
    it.drop(*OF_ACTIVATIONS)
    for name, weight in it.tensors.items():
        if weight.dtype in (*FLOAT8, np.int8, np.uint8) and (scale := it.take(*scale_names(name))) is not None:
            it.take(name)
            put(it, name, (weight, scale), _pieces(weight, scale, pair_of(it.settings.get("weight_block_size"))))


def read_fbgemm(it: Unpacking) -> None:
    """Puts a matrix in the place of each tensor of 8 bits; stacked experts are [expert, in, out] in the file."""
    it.drop(*OF_ACTIVATIONS)
    for name, weight in it.tensors.items():
        if weight.dtype not in FLOAT8 or (scale := it.take(*scale_names(name))) is None:
            continue
        it.take(name)
        pieces = Pieces(weight, scale)
        if len(weight.shape) == 3 and len(scale.shape) == 3:
            outputs = 1 if scale.shape[1] > 1 else 2
            pieces = Pieces(swapped(weight), scale, scale_dims=(0, outputs, None), turned=True)
        put(it, name, (weight, scale), pieces)


def scale_names(name: str) -> list[str]:
    """Returns the names that the scales of a tensor may have, the likeliest first."""
    stem = name.removesuffix(".weight")
    return [f"{name}_scale_inv", f"{name}_scale"] if stem == name else [f"{stem}.{scale}" for scale in SCALES]


def _pieces(weight: Tensor, scale: Tensor, block: tuple[int | None, int | None]) -> Pieces:
    exponents = scale.dtype in (EXPONENT, np.uint8)
    if exponents and weight.dtype in (np.int8, np.uint8):
        return Pieces(fp4(weight), scale, (1, MX_COLUMNS))
    block = if_fitting(weight.shape, scale.shape, block)
    return Pieces(weight, scale, (1, MX_COLUMNS) if exponents and None in block else block)


def fp4(packed: Part) -> Part:
    """Returns numbers of FP4 (E2M1), two columns in a byte, the first in the low half."""
    columns = 2 * packed.shape[-1] if packed.shape else 0
    return Stream(packed, 4, len(packed.shape) - 1, columns, FLOAT4)
