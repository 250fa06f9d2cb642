"""Integers and floats of 8 bits with a scale per row, as torchao, quanto and bitsandbytes name them."""

from __future__ import annotations

import json
import re

import numpy as np

from easydel.weights.formats.checks import beyond
from easydel.weights.formats.fp8 import OF_ACTIVATIONS
from easydel.weights.formats.matrix import FLOAT8, Pieces, pair_of, put
from easydel.weights.formats.parts import BYTE, Computed
from easydel.weights.formats.unpacking import Unpacking

TORCHAO_KINDS = ("Int8Tensor", "Float8Tensor", "IntxUnpackedToInt8Tensor")
BNB_LEVELS = 127


def read_torchao(it: Unpacking) -> None:
    """Puts a matrix in the place of torchao's tensors, whose kinds the metadata of the files tells."""
    it.drop("._weight_act_quant_scale", "._weight_act_quant_zero_point")
    for stem, code in it.ending("._weight_qdata"):
        it.take(code.name)
        scale, zero = it.take(f"{stem}._weight_scale"), it.take(f"{stem}._weight_zero_point")
        gain = it.take(f"{stem}._weight_act_pre_scale")
        kind, block, bits = _torchao_kind(it, f"{stem}.weight")
        if kind not in TORCHAO_KINDS:
            it.refuse(code, f"is torchao's {kind}, whose layout is not known here: {', '.join(TORCHAO_KINDS)} are")
        elif scale is None or code.dtype not in (np.int8, *FLOAT8):
            it.refuse(code, f"is {code.dtype}, expected int8 or float8 with a _weight_scale beside it")
        elif zero is not None and zero.dtype == np.int8 and (problem := beyond(it, zero, bits)) is not None:
            it.refuse(zero, problem)
        else:
            pieces = Pieces(code, scale, block, zero=zero, gain=gain)
            put(it, f"{stem}.weight", (code, scale, zero, gain), pieces)


def _torchao_kind(it: Unpacking, name: str) -> tuple[str, tuple[int | None, int | None], int]:
    """Returns the class of a tensor, its block size if the metadata has one, and the bits of the codes in its bytes."""
    try:
        entry = json.loads(it.metadata.get(name, "null"))
        kind, block, target = entry["_type"], *(entry["_data"].get(key) for key in ("block_size", "target_dtype"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return "tensor without a description", (None, None), BYTE
    narrow = re.search(r"int([1-8])\b", str(target)[:100])
    return str(kind)[:100], pair_of(block), int(narrow[1]) if narrow else BYTE


def read_quanto(it: Unpacking) -> None:
    """Puts a matrix in the place of quanto's tensors of 8 bits."""
    it.drop(*OF_ACTIVATIONS)
    for stem, code in it.ending(".weight._data"):
        it.take(code.name)
        scale = it.take(f"{stem}.weight._scale")
        if scale is None or code.dtype not in (np.int8, *FLOAT8):
            it.refuse(code, f"is {code.dtype}, expected int8 or float8 with a weight._scale beside it")
        else:
            put(it, f"{stem}.weight", (code, scale), Pieces(code, scale))
    for _, code in it.ending(".weight._data._data"):
        it.refuse(code, "is quanto's qint4 or qint2, which are not known here: qint8 and qfloat8 are")


def read_bnb_int8(it: Unpacking) -> None:
    """Puts a matrix in the place of bitsandbytes' tensors of 8 bits."""
    for stem, scale in it.ending(".SCB"):
        code, layout = it.take(f"{stem}.weight"), it.take(f"{stem}.weight_format")
        it.take(scale.name)
        if code is None or code.dtype != np.int8:
            it.refuse(scale, f"has no int8 {stem}.weight beside it")
        elif layout is not None and (found := it.small(layout)) is not None and found.any():
            it.refuse(code, f"is in a GPU's order (weight_format {found.ravel()[:4].tolist()}), expected rows (0)")
        else:
            put(it, code.name, (code, scale), Pieces(code, Computed(scale, _by_levels, np.dtype(np.float32))))


def _by_levels(found: np.ndarray) -> np.ndarray:
    """Returns scales of the largest numbers of rows as scales of codes."""
    return found.astype(np.float32) / np.float32(BNB_LEVELS)
