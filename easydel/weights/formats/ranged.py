"""Integers of 2, 4 or 8 bits with a scale per row, as Gemma's own quantization writes them (transformers 5.23)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from easydel.checkpoint import Tensor
from easydel.errors import ConfigError
from easydel.weights.formats.matrix import Pieces, put
from easydel.weights.formats.parts import BYTE, Part, Stream, integers
from easydel.weights.formats.patterns import simple_pattern
from easydel.weights.formats.unpacking import Unpacking

OF_ACTIVATIONS = ("_activation_scale", ".k_cache_scale", ".v_cache_scale")
NAMES = ((".weight", ".weight_scale"), (".embedding_quantized", ".embedding_scale"))
BITS = (2, 4, BYTE)


def read_ranged(it: Unpacking) -> None:
    """Puts a matrix in the place of each weight and embedding with scales."""
    it.drop(*OF_ACTIVATIONS)
    bits_of = _bits(it)
    for codes, scales in NAMES:
        for stem, weight in it.ending(codes):
            scale = it.take(f"{stem}{scales}") if weight.dtype in (np.uint8, np.int8) else None
            if scale is not None:
                it.take(weight.name)
                put(it, f"{stem}.weight", (weight, scale), Pieces(_codes(weight, bits_of(stem)), scale))


def _codes(weight: Tensor, bits: int) -> Part:
    if weight.dtype == np.int8 or bits == BYTE or not weight.shape:
        return weight
    columns = weight.shape[-1] * (BYTE // bits)
    return Stream(weight, bits, len(weight.shape) - 1, columns, integers(bits, signed=True), 2 ** (bits - 1))


def _bits(it: Unpacking) -> Callable[[str], Any]:
    """Returns a function from a module's name to the bits of its numbers. ConfigError for settings that have none."""
    default: Any = it.settings.get("num_bits", 4)
    own = it.settings.get("module_quant_configs") or {}
    stated = [default, *(_stated(entry, default) for entry in own.values())] if isinstance(own, Mapping) else [None]
    if wrong := [bits for bits in stated if type(bits) is not int or bits not in BITS]:
        problem = f"quantization_config has {str(wrong[0])[:100]} bits, expected one of {BITS}"
        raise ConfigError(problem, file=it.config)
    patterns = [(simple_pattern(pattern, it), bits) for pattern, bits in zip(own, stated[1:], strict=True)]

    def bits_of(module: str) -> Any:
        return next((bits for pattern, bits in patterns if pattern.search(module)), default)

    return bits_of


def _stated(entry: Any, default: Any) -> Any:
    return entry.get("num_bits", default) if isinstance(entry, Mapping) else None
