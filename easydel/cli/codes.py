"""The quantized tensors of a checkpoint: how they are stored, and the bytes that saves."""

from __future__ import annotations

import re
from math import prod
from typing import TYPE_CHECKING, Any

from easydel.cli.tables import print_facts, print_table, size

if TYPE_CHECKING:
    from easydel.source import CheckpointSource
    from easydel.weights.sources import TensorSource

BFLOAT16_BYTES = 2


def codes(source: CheckpointSource) -> dict[str, Any] | None:
    """Returns the method, and what is stored by codes, in groups of tensors alike; None if nothing is."""
    from easydel.source import quantization_method

    found: dict[tuple[str, str, tuple[int, ...], int], dict[str, Any]] = {}
    for name, tensor in source.tensors.items():
        if 0 in tensor.shape or (stored := _code_block_and_step(tensor)) is None:
            continue
        key = (re.sub(r"\b\d+\b", "*", name), *stored)
        sums = found.setdefault(key, {"tensors": 0, "numbers": 0, "bytes": 0})
        sums["tensors"] += 1
        sums["numbers"] += prod(tensor.shape)
        sums["bytes"] += tensor.nbytes
    if not found:
        return None
    numbers, bytes_ = (sum(sums[what] for sums in found.values()) for what in ("numbers", "bytes"))
    return {
        "method": "easydel" if source.manifest is not None else quantization_method(source),
        "bits_per_weight": round(8 * bytes_ / numbers, 2),
        "bytes": sum(tensor.nbytes for tensor in source.tensors.values()),
        "bytes_as_bfloat16": sum(BFLOAT16_BYTES * prod(tensor.shape) for tensor in source.tensors.values()),
        "tensors": [
            {
                "name": name,
                "code": code,
                "block": list(block),
                "step": step,
                "bits_per_weight": round(8 * sums["bytes"] / sums["numbers"], 2),
                **sums,
            }
            for (name, code, block, step), sums in found.items()
        ],
    }


def _code_block_and_step(tensor: TensorSource) -> tuple[str, tuple[int, ...], int] | None:
    """Returns the dtype of codes, a block's rows and columns, and how far apart its rows lie (1: neighbours).

    Codes whose groups are pieces of several columns have no block.
    """
    from easydel.weights.coded import CodedTensor
    from easydel.weights.formats.hqq import Columns

    bare = getattr(tensor, "turned", tensor)
    if isinstance(bare, Columns):
        return bare.code.name, (), 1
    if not isinstance(bare, CodedTensor):
        return None
    rows, columns = bare.form.block
    return bare.form.code.name, (min(rows, bare.shape[-2]), min(columns, bare.shape[-1])), bare.form.step


def _told(block: list[int], step: int) -> str:
    return (" x ".join(map(str, block)) or "apart") + (f", rows {step} apart" if step > 1 else "")


def print_codes(found: dict[str, Any]) -> None:
    now, then = found["bytes"], found["bytes_as_bfloat16"]
    print_facts({
        "quantized by": found["method"],
        "bits per weight": f"{found['bits_per_weight']:g}, scales included",
        "bytes": f"{size(now)}, of {size(then)} as bfloat16 ({now / then:.0%})",
    })  # fmt: skip
    print()
    rows = [
        (
            row["name"],
            row["code"],
            _told(row["block"], row["step"]),
            f"{row['bits_per_weight']:g}",
            str(row["tensors"]),
        )
        for row in found["tensors"]
    ]
    print_table(("coded tensor", "code", "block", "bits", "count"), rows, numbers=["bits", "count"])
    print()
