"""GPTQ (Frantar et al. 2022, arXiv:2210.17323) as AutoGPTQ and gptqmodel write it, and auto-round in the same layout.

For W [out, in] of b bits in groups of g columns a file has, as int32, qweight [in * b / 32, out] packed along its rows,
qzeros [in / g, out * b / 32] packed along its columns, and perhaps the group of each column, g_idx [in]; and scales
[in / g, out]. W = (q - zero) * scale. Version 1 stores zeros less one, version 2 as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from easydel.checkpoint import Tensor
from easydel.errors import UnsupportedModelError
from easydel.weights.coded import Form
from easydel.weights.expressions import Index
from easydel.weights.formats.awq import read_awq
from easydel.weights.formats.bits import (
    centred,
    read_along_columns,
    read_along_rows,
    signed,
    unpacked,
    unsigned,
    window,
)
from easydel.weights.formats.packed import FLOATS, WORD, PackedTensor, misshapen
from easydel.weights.formats.unpacking import Unpacking

BITS = (2, 3, 4, 8)
LESS_ONE = {"gptq": True, "gptq_v2": False}
AUTO_ROUND_LESS_ONE = {"auto_round:auto_gptq": True, "auto_round": False}
CODES, SCALES, ZEROS, GROUPS = ".qweight", ".scales", ".qzeros", ".g_idx"


@dataclass(frozen=True, eq=False)
class GptqTensor(PackedTensor):
    """A matrix [out, in] from the tensors of GPTQ; without `qzeros` every zero is half the range of the codes.

    With `g_idx` a group's columns lie apart. With `less_one` the file has zeros less one.
    """

    name: str
    qweight: Tensor
    stored: Tensor
    qzeros: Tensor | None
    g_idx: Tensor | None
    columns: int
    bits: int
    group: int
    less_one: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return self.qweight.shape[1], self.columns

    @property
    def form(self) -> Form:
        if self.qzeros is None:
            return Form(signed(self.bits), (1, self.group))
        return Form(unsigned(self.bits), (1, self.group), shift="zero")

    def groups(self, columns: slice) -> np.ndarray | None:
        return None if self.g_idx is None else self.g_idx.read((columns,))

    def codes(self, index: Index) -> np.ndarray:
        rows, columns = index
        numbers = read_along_rows(self.qweight, (columns, rows), self.bits)
        return centred(numbers, self.bits) if self.qzeros is None else numbers.view(unsigned(self.bits))

    def scales(self, index: Index) -> np.ndarray:
        return self.stored.read(index[::-1]).T

    def shifts(self, index: Index) -> np.ndarray:
        assert self.qzeros is not None
        rows, blocks = index
        if not self.less_one:
            return read_along_columns(self.qzeros, (blocks, rows), self.bits).T
        words, inside = window(rows, self.bits, self.qzeros)
        stored = self.qzeros.read((blocks, words))
        if 8 % self.bits:
            return ((unpacked(stored, self.bits) + 1) & (1 << self.bits) - 1)[:, inside].T
        # gptqmodel, which transformers uses, took one off whole words: a zero of 0 borrowed from the next one
        ones = np.uint32(sum(1 << place for place in range(0, 32, self.bits)))
        return unpacked(stored.view(np.uint32) + ones, self.bits)[:, inside].T


def read_gptq(it: Unpacking) -> None:
    """Puts a matrix in the place of each qweight and of the tensors beside it."""
    name = it.settings.get("checkpoint_format") or it.settings.get("format") or "gptq"
    if name not in LESS_ONE or it.settings.get("is_marlin_format"):
        found = "marlin" if name in LESS_ONE else name
        raise UnsupportedModelError(
            f"the weights are GPTQ's in the order of {found!r}, which is made for one kind of GPU",
            file=it.file,
            hint="use a GPTQ checkpoint in the format gptq or gptq_v2",
        )
    read_packed(it, less_one=LESS_ONE[name])


def read_auto_round(it: Unpacking) -> None:
    """Puts a matrix in the place of each packed weight, whichever of its packings auto-round has chosen."""
    packing = it.settings.get("packing_format") or "auto_round:auto_gptq"
    if packing == "auto_round:auto_awq":
        read_awq(it)
    elif packing in AUTO_ROUND_LESS_ONE:
        read_packed(it, less_one=AUTO_ROUND_LESS_ONE[packing])
    else:
        raise UnsupportedModelError(
            f"the weights are packed by auto-round as {packing!r}",
            file=it.file,
            hint=f"use a checkpoint in {', '.join(AUTO_ROUND_LESS_ONE)} or auto_round:auto_awq",
        )


def read_packed(it: Unpacking, *, less_one: bool) -> None:
    """Puts a matrix in the place of each qweight packed along its rows, and of the tensors beside it."""
    for stem, qweight in it.ending(CODES):
        settings = {**it.settings, **module_settings(it, stem)}
        it.take(qweight.name)
        scales, zeros, groups = (it.take(f"{stem}{suffix}") for suffix in (SCALES, ZEROS, GROUPS))
        bits, group, symmetric = (settings.get(key) for key in ("bits", "group_size", "sym"))
        if type(bits) is not int or bits not in BITS or type(group) is not int or group == 0 or group < -1:
            it.refuse(qweight, f"has bits={bits} and group_size={group}, expected one of {BITS}, and -1 or more than 0")
            continue
        if scales is None or (zeros is None and not symmetric) or (groups is None and settings.get("desc_act")):
            wanted = "scales, qzeros and g_idx" if settings.get("desc_act") else "scales and qzeros"
            it.refuse(qweight, f"lacks {wanted} beside it")
            continue
        columns = groups.shape[0] if groups is not None and groups.shape else qweight.shape[0] * 32 // bits
        group = columns if group == -1 else group
        # symmetric weights have this zero whatever the file says: writers of version 2 left files named version 1
        zeros = None if symmetric else zeros
        apart = groups if groups is not None and groups.shape == (columns,) and _apart(groups, group) else None
        tensor = GptqTensor(f"{stem}.weight", qweight, scales, zeros, apart, columns, bits, group, less_one)
        if problems := list(_problems(tensor, groups)):
            it.refuse(qweight, "; ".join(problems))
        else:
            it.put(tensor.name, tensor)


def module_settings(it: Unpacking, stem: str) -> Mapping[str, Any]:
    """Returns the settings of one module that differ from those of all.

    gptqmodel: "dynamic", by regular expressions for the start of a name, after "+:" or "-:" (not quantized).
    auto-round: "extra_config", by names, or by regular expressions for a part of them.
    """
    dynamic, extra = (it.settings.get(key) or {} for key in ("dynamic", "extra_config"))
    if isinstance(extra, Mapping) and isinstance(found := extra.get(stem), Mapping):
        return found
    tables = ((dynamic, re.match, ("+:", "-:")), (extra, re.search, ()))
    for table, match, signs in tables:
        for pattern, found in table.items() if isinstance(table, Mapping) else ():
            plain = next((pattern.removeprefix(sign) for sign in signs if pattern.startswith(sign)), pattern)
            try:
                if isinstance(found, Mapping) and match(plain, stem):
                    return found
            except re.error as error:
                raise UnsupportedModelError(f"{pattern!r} is no pattern for modules: {error}", file=it.file) from error
    return {}


def _apart(groups: Tensor, group: int) -> bool:
    """True if the columns of a group are not side by side."""
    return not np.array_equal(groups.read(), np.arange(groups.shape[0]) // group)


def _problems(tensor: GptqTensor, groups: Tensor | None) -> Iterator[str]:
    qweight, scales, zeros, bits = tensor.qweight, tensor.stored, tensor.qzeros, tensor.bits
    if len(qweight.shape) != 2 or len(scales.shape) != 2:
        yield f"is {list(qweight.shape)}, its scales are {list(scales.shape)}, expected two dimensions for both"
        return
    rows, columns = tensor.shape
    blocks = -(-columns // tensor.group)
    words = -(-columns * bits // 32)
    yield from misshapen(qweight, "is", (words, rows), WORD)
    yield from misshapen(scales, "its scales are", (blocks, rows), *FLOATS)
    if zeros is not None:
        yield from misshapen(zeros, "its qzeros are", (blocks, -(-rows * bits // 32)), WORD)
    if groups is not None:
        yield from misshapen(groups, "its g_idx is", (columns,), WORD)
        found = groups.read()
        if found.size and (found.min() < 0 or found.max() >= blocks):
            yield f"its g_idx has groups {found.min()} to {found.max()}, expected 0 to {blocks - 1}"
