"""GPTQ (Frantar et al. 2022, arXiv:2210.17323) as AutoGPTQ and gptqmodel write it, and auto-round in the same layout.

For W [out, in] of b bits in groups of g columns a file has, as int32, qweight [in * b / 32, out] packed along its rows,
qzeros [in / g, out * b / 32] packed along its columns, and perhaps the group of each column, g_idx [in]; and scales
[in / g, out]. W = (q - zero) * scale. Version 1 stores zeros less one, version 2 as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from easydel.checkpoint import Tensor
from easydel.config import shown
from easydel.errors import UnsupportedModelError
from easydel.weights.coded import Form
from easydel.weights.formats.at_hand import at_hand
from easydel.weights.formats.awq import read_awq
from easydel.weights.formats.checks import BYTE, FLOATS, WORD, is_group, misshapen
from easydel.weights.formats.compressed_tensors import read_compressed_tensors
from easydel.weights.formats.matrix import Matrix
from easydel.weights.formats.parts import Computed, Part, Stream, integers, swapped
from easydel.weights.formats.patterns import simple_pattern
from easydel.weights.formats.unpacking import Unpacking
from easydel.weights.sources import Spare

BITS, WORD_BITS = (2, 3, 4, 8), 32
LESS_ONE = {"gptq": True, "gptq_v2": False}
AUTO_ROUND_LESS_ONE = {"auto_round:auto_gptq": True, "auto_round": False, "auto_round:gptqmodel": False}
OTHERS = {
    "auto_round:auto_awq": read_awq,
    "auto_round:llm_compressor": read_compressed_tensors,
    "llm_compressor": read_compressed_tensors,
}
PLAIN = re.compile(r"[\w.]+")  # a name of a module, which is no pattern
CODES, SCALES, ZEROS, GROUPS = ".qweight", ".scales", ".qzeros", ".g_idx"


def read_gptq(it: Unpacking) -> None:
    """Puts a matrix in the place of each qweight and of the tensors beside it."""
    name = it.settings.get("checkpoint_format") or it.settings.get("format") or "gptq"
    if it.settings.get("is_marlin_format"):
        name = "marlin"
    if not isinstance(name, str) or name not in LESS_ONE:
        raise UnsupportedModelError(
            f"the weights are GPTQ's in the format {shown(name)}, whose order of numbers is not known here",
            file=it.config,
            hint="use a GPTQ checkpoint in the format gptq or gptq_v2",
        )
    read_packed(it, less_one=LESS_ONE[name])


def read_auto_round(it: Unpacking) -> None:
    """Puts a matrix in the place of each packed weight, in whichever of its packings auto-round has written it."""
    packing = it.settings.get("packing_format") or "auto_round:auto_gptq"
    packing = packing if isinstance(packing, str) else shown(packing)
    if packing in AUTO_ROUND_LESS_ONE:
        read_packed(it, less_one=AUTO_ROUND_LESS_ONE[packing])
    elif packing in OTHERS:
        OTHERS[packing](it)
    else:
        raise UnsupportedModelError(
            f"the weights are packed by auto-round as {shown(packing)}, which is not known here",
            file=it.config,
            hint=f"use a checkpoint in {', '.join((*AUTO_ROUND_LESS_ONE, *OTHERS))}",
        )


def read_packed(it: Unpacking, *, less_one: bool) -> None:
    """Puts a matrix in the place of each qweight packed along its rows, and of the tensors beside it."""
    settings_of = module_settings(it)
    for stem, qweight in it.ending(CODES):
        it.take(qweight.name)
        scales, zeros, groups = (it.take(f"{stem}{suffix}") for suffix in (SCALES, ZEROS, GROUPS))
        settings = {**it.settings, **settings_of(stem)}
        bits, group, symmetric = settings.get("bits"), settings.get("group_size"), settings.get("sym") is True
        if type(bits) is not int or bits not in BITS or not is_group(group):
            it.refuse(
                qweight, f"has bits={bits!r} and group_size={group!r}, expected one of {BITS}, and -1 or more than 0"
            )
        elif scales is None or (zeros is None and not symmetric) or (groups is None and settings.get("desc_act")):
            wanted = "scales, qzeros and g_idx" if settings.get("desc_act") else "scales and qzeros"
            it.refuse(qweight, f"lacks {wanted} beside it")
        else:
            # symmetric weights have this zero whatever the file says: version 2 was written under the name of version 1
            stored = Stored(qweight, scales, None if symmetric else zeros, groups, bits, group, less_one)
            if problems := list(stored.problems()):
                it.refuse(qweight, "; ".join(problems))
            else:
                it.put(f"{stem}.weight", stored.matrix(f"{stem}.weight"))
                if (bias := it.take(f"{stem}.bias")) is not None:
                    it.put(bias.name, Spare(bias))


@dataclass(frozen=True)
class Stored:
    """The tensors of one matrix, and how they are packed; without `qzeros` zeros are half the range of the codes."""

    qweight: Tensor
    scales: Tensor
    qzeros: Tensor | None
    g_idx: Tensor | None
    bits: int
    group_size: int
    less_one: bool

    @property
    def columns(self) -> int:
        if self.g_idx is not None:
            return prod(self.g_idx.shape)
        return self.qweight.shape[0] * WORD_BITS // self.bits

    @property
    def group(self) -> int:
        return max(self.columns, 1) if self.group_size == -1 else min(self.group_size, max(self.columns, 1))

    def matrix(self, name: str) -> Matrix:
        """Returns the matrix [out, in]."""
        bits, centred = self.bits, self.qzeros is None
        dtype, middle = integers(bits, signed=centred), 1 << (bits - 1) if centred else 0
        code = swapped(Stream(self.qweight, bits, 0, self.columns, dtype, middle))
        form = Form(dtype, (1, self.group), shift="" if centred else "zero")
        tensors = tuple(part for part in (self.qweight, self.scales, self.qzeros, self.g_idx) if part is not None)
        zero = None if self.qzeros is None else swapped(self.zeros(self.qzeros))
        order = self.groups if self.reordered else None
        return Matrix(name, form, tensors, code, swapped(self.scales), zero, order=order)

    @cached_property
    def groups(self) -> Part | None:
        """The group of each column, if the file has it; of another machine it is fetched once."""
        return at_hand(self.g_idx)

    def zeros(self, qzeros: Tensor) -> Part:
        """Returns the zeros [blocks, out]."""
        bits, rows, dtype = self.bits, self.qweight.shape[1], BYTE
        if not self.less_one:
            return Stream(qzeros, bits, 1, rows, dtype)
        if 8 % bits:
            return Computed(Stream(qzeros, bits, 1, rows, dtype), lambda found: found + 1 & (1 << bits) - 1, dtype)
        # gptqmodel, which transformers uses, took one off whole words: a zero of 0 borrowed from the next one
        ones = np.uint32(sum(1 << place for place in range(0, WORD_BITS, bits)))
        return Stream(Computed(qzeros, lambda found: found.view(np.uint32) + ones, WORD), bits, 1, rows, dtype)

    @property
    def reordered(self) -> bool:
        """True if the columns of a group are not side by side."""
        return self.groups is not None and not np.array_equal(self.groups.read(), np.arange(self.columns) // self.group)

    def problems(self) -> Iterator[str]:
        """Yields what does not fit."""
        if len(self.qweight.shape) != 2:
            yield f"is {list(self.qweight.shape)}, expected two dimensions"
            return
        rows, columns, bits = self.qweight.shape[1], self.columns, self.bits
        blocks = -(-columns // self.group)
        yield from misshapen(self.qweight, "is", (-(-columns * bits // WORD_BITS), rows), WORD)
        yield from misshapen(self.scales, "its scales are", (blocks, rows), *FLOATS)
        if self.qzeros is not None:
            yield from misshapen(self.qzeros, "its qzeros are", (blocks, -(-rows * bits // WORD_BITS)), WORD)
        if self.g_idx is not None and self.groups is not None:
            yield from misshapen(self.g_idx, "its g_idx is", (columns,), WORD)
            found = self.groups.read()
            if found.size and (found.min() < 0 or found.max() >= blocks):
                yield f"its g_idx has groups {found.min()} to {found.max()}, expected 0 to {blocks - 1}"


def module_settings(it: Unpacking) -> Callable[[str], Mapping[str, Any]]:
    """Returns a function from the name of a module to those of its settings that are not the ones of all.

    gptqmodel: "dynamic", by regular expressions for the start of a name, after "+:" or "-:" (not quantized).
    auto-round: "extra_config", by names, or by regular expressions for a part of them.
    """
    dynamic, extra = (_entries(it.settings.get(key)) for key in ("dynamic", "extra_config"))
    starts = [(simple_pattern(re.sub(r"^[+-]:", "", key), it), value) for key, value in dynamic.items()]
    parts = [(simple_pattern(key, it), value) for key, value in extra.items() if not PLAIN.fullmatch(key)]

    def settings_of(stem: str) -> Mapping[str, Any]:
        if stem in extra:
            return extra[stem]
        found = [value for pattern, value in starts if pattern.match(stem)]
        found += [value for pattern, value in parts if pattern.search(stem)]
        return found[0] if found else {}

    return settings_of


def _entries(found: object) -> dict[str, Mapping[str, Any]]:
    return {key: value for key, value in found.items() if isinstance(value, Mapping)} if isinstance(found, dict) else {}
