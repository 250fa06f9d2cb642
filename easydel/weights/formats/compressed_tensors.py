"""compressed-tensors, the format of llm-compressor: integers in streams of bits, int8, fp8, NVFP4 and MXFP4.

One checkpoint may have several of them. Names and dtypes tell which a tensor has; of the config, whose targets are
classes and regular expressions, only the sets of bits, group sizes and strategies count, against which tensors are
checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from easydel.checkpoint import Tensor
from easydel.errors import UnsupportedModelError
from easydel.weights.formats.checks import beyond
from easydel.weights.formats.fp8 import MX_COLUMNS, fp4
from easydel.weights.formats.matrix import FLOAT8, Pieces, groups_of, if_fitting, pair_of, put, with_units
from easydel.weights.formats.parts import FLOAT6, Arranged, Computed, Fields, Part, Stream, integers
from easydel.weights.formats.unpacking import Unpacking

OF_ACTIVATIONS = (
    *(".input_scale", ".input_zero_point", ".input_global_scale", ".output_scale", ".output_zero_point"),
    *(".k_scale", ".v_scale", ".q_scale", ".k_zero_point", ".v_zero_point", ".q_zero_point"),
)
WORD = 32
NVFP4_COLUMNS = 16
FP6_BYTES = 24  # of 32 numbers
BITS = range(1, 9)


@dataclass(frozen=True)
class Schemes:
    """The weights' schemes that a config has, of whatever tensors.

    `columns` are group sizes along rows; `whole` is True if some scheme has one group in a row.
    """

    bits: frozenset[int]
    columns: frozenset[int]
    whole: bool
    block: tuple[int | None, int | None]


def read_compressed_tensors(it: Unpacking) -> None:
    """Puts a matrix in the place of each compressed weight."""
    _refuse_others(it)
    it.drop(*OF_ACTIVATIONS)
    schemes = _schemes(it.settings)
    for stem, packed in it.ending(".weight_packed"):
        it.take(packed.name)
        _packed(it, stem, packed, schemes)
    for stem, weight in it.ending(".weight"):
        scale = it.take(f"{stem}.weight_scale") if weight.dtype in (*FLOAT8, np.int8) else None
        if scale is not None:
            it.take(weight.name)
            zero = it.take(f"{stem}.weight_zero_point")
            _plain(it, weight, scale, zero, schemes)


def _refuse_others(it: Unpacking) -> None:
    """Raises UnsupportedModelError for sparse weights, and for weights that need their inputs rotated."""
    groups = it.settings.get("config_groups")
    sparsity, transform = it.settings.get("sparsity_config"), it.settings.get("transform_config")
    stating = [it.settings, sparsity, *(groups.values() if isinstance(groups, dict) else ())]
    formats = [one.get("format") for one in stating if isinstance(one, Mapping)]
    found = next((name for name in formats if isinstance(name, str) and ("sparse" in name or "marlin" in name)), None)
    if isinstance(transform, dict) and transform.get("config_groups"):
        found = "a transform (rotated inputs)"
    if found is not None:
        raise UnsupportedModelError(
            f"the weights are quantized by compressed-tensors as {found}",
            file=it.config,
            hint="use a checkpoint in pack-quantized, int-quantized, float-quantized or nvfp4-pack-quantized",
        )


def _schemes(settings: Mapping[str, Any]) -> Schemes:
    weights = list(_weights(settings))
    sizes = [scheme.get("group_size") for scheme in weights]
    strategies = [scheme.get("strategy") for scheme in weights]
    blocks = [pair_of(scheme.get("block_structure")) for scheme in weights]
    return Schemes(
        frozenset(b for s in weights if type(b := s.get("num_bits")) is int and s.get("type", "int") == "int"),
        frozenset(size for size in sizes if type(size) is int and size > 0),
        not strategies or any(strategy not in ("group", "tensor_group") for strategy in strategies) or -1 in sizes,
        next((block for block in blocks if None not in block), (None, None)),
    )


def _weights(settings: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    groups = settings.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        if isinstance(group, dict) and isinstance(group.get("weights"), dict):
            yield group["weights"]


def _plain(it: Unpacking, weight: Tensor, scale: Tensor, zero: Tensor | None, schemes: Schemes) -> None:
    block = if_fitting(weight.shape, scale.shape, schemes.block)
    if None in block and len(scale.shape) > 1:
        group = groups_of(weight.shape[-1], scale.shape[-1])
        block = if_fitting(weight.shape, scale.shape, (1, group if group in schemes.columns else None))
    zeros = zero if zero is None else Arranged(zero, with_units(zero, len(weight.shape)))
    put(it, weight.name, (weight, scale, zero), Pieces(weight, scale, block, zero=zeros))


def _packed(it: Unpacking, stem: str, packed: Tensor, schemes: Schemes) -> None:
    name = f"{stem}.weight"
    scale, zero = it.take(f"{name}_scale"), it.take(f"{name}_zero_point")
    shape, order, total = it.take(f"{name}_shape"), it.take(f"{name}_g_idx"), it.take(f"{name}_global_scale")
    if scale is None:
        it.refuse(packed, f"has no {name}_scale beside it")
    elif len(packed.shape) < 2 or (len(scale.shape) != len(packed.shape) and prod(scale.shape) != 1):
        it.refuse(packed, f"is {list(packed.shape)}, its scales are {list(scale.shape)}, expected matrices")
    elif packed.dtype == np.uint8:
        columns = MX_COLUMNS if scale.dtype == np.uint8 else NVFP4_COLUMNS
        factor = None if total is None else Computed(total, _inverse, np.dtype(np.float32))
        code = fp6(packed) if packed.shape[-1] == scale.shape[-1] * FP6_BYTES else fp4(packed)
        put(it, name, (packed, scale, total), Pieces(code, scale, (1, columns), factor=factor))
    elif packed.dtype == np.int32:
        _words(it, name, (packed, scale, zero, shape, order), schemes)
    else:
        it.refuse(packed, f"is {packed.dtype}, expected int32 or uint8")


def _inverse(found: np.ndarray) -> np.ndarray:
    """Returns the factor of a global scale, which is a divisor here."""
    with np.errstate(divide="ignore"):
        return np.float32(1) / found.astype(np.float32)


def fp6(packed: Tensor) -> Part:
    """Returns numbers of FP6 (E2M3), four columns in three bytes."""
    return Stream(packed, 6, len(packed.shape) - 1, packed.shape[-1] * 4 // 3, FLOAT6)


def _words(
    it: Unpacking,
    name: str,
    stored: tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None],
    schemes: Schemes,
) -> None:
    packed, scale, zero, shape, order = stored
    columns, bits = _columns(it, packed, shape, schemes)
    if columns is None or bits is None:
        stated = "" if shape is None else f" with shape {it.small(shape)}"
        known = _listed(schemes.bits) or "no"
        it.refuse(packed, f"is {list(packed.shape)}{stated}, which {known} bits a number do not give")
        return
    alone = prod(scale.shape) == 1
    group = columns if alone else groups_of(columns, scale.shape[-1])
    if not group or not _stated(group, columns, schemes):
        sizes = _listed(schemes.columns) or "whole rows"
        it.refuse(packed, f"has {scale.shape[-1]} scales for {columns} columns, expected groups of {sizes}")
        return
    signed = zero is None or zero.dtype == np.int8
    code = _numbers(packed, bits, columns, integers(bits, signed=signed), 2 ** (bits - 1) if signed else 0)
    if code is None:
        it.refuse(packed, f"has {packed.shape[-1]} words in a row, too few for {columns} numbers of {bits} bits")
        return
    zeros = None if zero is None else _zeros(it, zero, packed.shape, scale.shape, bits)
    if isinstance(zeros, str):
        it.refuse(zero or packed, zeros)
        return
    put(it, name, stored, Pieces(code, scale, (None, None) if alone else (1, group), zero=zeros, order=order))


def _zeros(it: Unpacking, zero: Tensor, packed: tuple[int, ...], scale: tuple[int, ...], bits: int) -> Part | str:
    """Returns zero points, or what is wrong with them: packed along rows, but int8 where there is one for all."""
    if zero.dtype == np.int8:
        if (problem := beyond(it, zero, bits)) is not None:
            return problem
        return Arranged(zero, with_units(zero, len(packed)))
    expected = (*packed[:-2], -(-packed[-2] * bits // WORD), scale[-1] if scale else 1)
    if zero.shape != expected or zero.dtype != np.int32:
        return f"is {zero.dtype} {list(zero.shape)}, expected int32 {list(expected)}"
    return Stream(zero, bits, len(packed) - 2, packed[-2], integers(bits, signed=False))


def _columns(it: Unpacking, packed: Tensor, shape: Tensor | None, schemes: Schemes) -> tuple[int | None, int | None]:
    """Returns the columns of a packed matrix and the bits of a number."""
    known = sorted(bits for bits in schemes.bits if bits in BITS)
    stated = None if shape is None else it.small(shape, needed=len(known) > 1)
    if stated is None:
        return (packed.shape[-1] * WORD // known[0], known[0]) if len(known) == 1 else (None, None)
    whole = stated.shape == (len(packed.shape),) and np.issubdtype(stated.dtype, np.integer)
    *rows, columns = stated.tolist() if whole else (-1, -1)
    same = tuple(rows) == packed.shape[:-1]
    fits = [bits for bits in known if same and packed.shape[-1] in _widths(columns, bits)]
    return (columns, fits[0]) if fits else (None, None)


def _widths(columns: int, bits: int) -> tuple[int, int]:
    """Returns the words of a row: numbers in one stream, or as older versions have it, none of them in two words."""
    return -(-columns * bits // WORD), -(-columns // (WORD // bits))


def _numbers(packed: Tensor, bits: int, columns: int, dtype: np.dtype, minus: int) -> Part | None:
    stream, fields = _widths(columns, bits)
    if packed.shape[-1] == stream:
        return Stream(packed, bits, len(packed.shape) - 1, columns, dtype, minus)
    return Fields(packed, bits, columns, dtype, minus) if packed.shape[-1] == fields else None


def _stated(group: int, columns: int, schemes: Schemes) -> bool:
    return group in schemes.columns or (group == columns and schemes.whole)


def _listed(numbers: frozenset[int]) -> str:
    return " or ".join(map(str, sorted(numbers)))
