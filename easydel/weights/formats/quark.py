"""AMD's Quark: fp8, int8 and MXFP4, told apart by dtypes."""

from __future__ import annotations

import numpy as np

from easydel.weights.formats.fp8 import MX_COLUMNS, OF_ACTIVATIONS, fp4
from easydel.weights.formats.matrix import FLOAT8, Pieces, put
from easydel.weights.formats.unpacking import Unpacking

OTHERS = (".input_zero_point", ".output_zero_point", ".bias_scale", ".bias_zero_point")


def read_quark(it: Unpacking) -> None:
    """Puts a matrix in the place of each weight with scales."""
    it.drop(*OF_ACTIVATIONS, *OTHERS)
    for stem, weight in it.ending(".weight"):
        scale, zero = it.take(f"{stem}.weight_scale"), it.take(f"{stem}.weight_zero_point")
        if scale is None:
            continue
        it.take(weight.name)
        if weight.dtype == np.uint8 and scale.dtype == np.uint8:
            put(it, weight.name, (weight, scale), Pieces(fp4(weight), scale, (1, MX_COLUMNS)))
        elif weight.dtype in (*FLOAT8, np.int8):
            # zero points of symmetric schemes are written, too
            zeros = zero if weight.dtype == np.int8 else None
            put(it, weight.name, (weight, scale, zero), Pieces(weight, scale, zero=zeros))
        else:
            it.refuse(weight, f"is Quark's {weight.dtype}, whose order of rows is not known here: fp8, int8, mxfp4 are")
