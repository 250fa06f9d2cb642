"""Storage in 8 bits, with a float32 scale per output row, and in 4 bits, with a bfloat16 scale per block of a row.

Kernels, expert kernels and embeddings can be quantized. Norms, biases, routers and the small parameters of recurrent
mixers never are: they are tiny, and their errors spread.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

import ml_dtypes
import numpy as np

from easydel.errors import ArgumentError
from easydel.forms import Form, by_rows, packed
from easydel.stored import Split, device_counts, storable
from easydel.tree import flatten, params_of

# Adding this to a float32 below 2**22 rounds it to an integer, which is in the lowest bits; half goes to even.
ROUNDING = np.float32(3 << 22)
INT8, INT4 = np.dtype(np.int8), np.dtype(ml_dtypes.int4)
FLOAT32, BFLOAT16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)
BLOCK, LEAST = 64, 16  # columns of a block of 4-bit numbers; of fewer, scales would weigh as much as what they save
LOWEST = (-8, -7, -9)  # what a block's largest number is rounded to, before numbers are limited to -8 to 7
TABLES = ("embedding", "lm_head/kernel")
TINY = np.finfo(np.float32).tiny  # below it, 1 / scale would not be finite


@dataclass(frozen=True)
class Int8:
    """A request for 8-bit storage of the parameters that `targets` name (None: all possible), as in `make_int8`."""

    targets: Collection[str] | None = None


@dataclass(frozen=True)
class Int4:
    """A request for 4-bit storage of the parameters that `targets` name, as in `make_int4`."""

    targets: Collection[str] | None = None


def quantize_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns int8 of the same shape, and a float32 scale per row (all but the last dimension): row = int8 * scale."""
    values, scales = rounded_rows(np.array(rows, dtype=np.float32))
    return values.astype(np.int8), scales


def rounded_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantizes as `quantize_rows` does, without memory of its own: `rows`, float32 and contiguous, are consumed.

    Returns int32 in the same memory, of which only the lowest byte counts (casting keeps just that), and scales. A row
    with NaN or Inf becomes NaN as a whole, by its scale.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and Inf are allowed, or reported by name after reading
        top = np.maximum(rows.max(axis=-1, keepdims=True, initial=0), -rows.min(axis=-1, keepdims=True, initial=0))
        scale = np.where(top == 0, np.float32(1), np.maximum(top / np.float32(127), TINY))
        np.multiply(rows, np.float32(1) / scale, out=rows)
        np.add(rows, ROUNDING, out=rows)
    return rows.view(np.int32), scale[..., 0]


def rounded_blocks(rows: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns numbers from -8 to 7 as int8, [..., columns], and a bfloat16 scale per `block` columns.

    `rows` are float32 and contiguous. The scale has the sign that makes the largest number -8, which uses all 16 codes.
    Of three steps between codes the one with the least squared error is taken, and the scale that is best for its
    codes: on normally distributed weights, 0.71 of the squared error of rounding to the nearest of equal steps.
    """
    blocks = rows.reshape(*rows.shape[:-1], -1, block)
    with np.errstate(all="ignore"):  # NaN and Inf give scales that are not finite, and are reported by name
        top = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[..., None], axis=-1)[..., 0]
        top = np.where(np.abs(top) < TINY, np.float32(1), top)
        codes, scale, best = np.empty_like(blocks), top, np.full(top.shape, -1, np.float32)
        for lowest in LOWEST:
            _nearest(blocks, top / np.float32(lowest), codes)
            along = np.einsum("...b,...b->...", blocks, codes)
            squares = np.maximum(np.einsum("...b,...b->...", codes, codes), 1)
            better = along * along / squares > best  # what the codes explain of the block's square
            best = np.where(better, along * along / squares, best)
            scale = np.where(better & (along != 0), along / squares, scale)
        scale = scale.astype(BFLOAT16)
        _nearest(blocks, scale.astype(np.float32), codes)
        return codes.astype(np.int8).reshape(rows.shape), scale


def _nearest(blocks: np.ndarray, scale: np.ndarray, out: np.ndarray) -> None:
    np.multiply(blocks, (1 / scale)[..., None], out=out)
    np.rint(out, out=out)
    np.maximum(out, -8, out=out)
    np.minimum(out, 7, out=out)


def rounded(rows: np.ndarray, form: Form) -> tuple[np.ndarray, np.ndarray]:
    """Quantizes float32 `rows`, which are consumed, to arrays of codes and scales as parameters of that form have them.

    Scales do not depend on the form's blocks, which may be parts of those that share a scale. Of the codes' numbers
    only the lowest byte counts.
    """
    columns = rows.shape[-1]
    if form.is_by_rows(columns) and form.code == INT8:
        return rounded_rows(rows)
    block = gcd(BLOCK, columns)
    codes, scales = rounded_blocks(rows, block)
    found = scales[..., 0] if form.is_by_rows(columns) else np.repeat(scales, block // form.block[1], axis=-1)
    return packed(codes, form), found


def make_int8(module: Any, targets: Collection[str] | None) -> list[str]:
    """Declares the targeted parameters int8, with a scale per row, before any value is loaded. Returns their paths.

    `targets` are leaf names ("kernel"), names of modules ("q_proj") or paths ("lm_head/kernel"); None means all.
    Raises ArgumentError for a target that names nothing that can be quantized.
    """
    places = storable(module)
    chosen = _chosen(module, places, targets)
    for path in chosen:
        places[path].store(by_rows(INT8, places[path].shape[-1]), FLOAT32)
    return chosen


def make_int4(module: Any, targets: Collection[str] | None, split: Split | None = None) -> list[str]:
    """Declares the targeted parameters int4, with a scale per 64 columns. Returns the paths of all it declares.

    Without `targets` these are all kernels, and embeddings and the head are int8: each of their rows is a token's, and
    they are looked up as they are. Parameters whose rows are of no such blocks are int8, too. Blocks that `split` would
    cut are stored as several. `targets` are as in `make_int8`.
    """
    places = storable(module)
    chosen = [path for path in _chosen(module, places, targets) if places[path].form is None]
    eight = [path for path in chosen if targets is None and path.endswith(TABLES)]
    eight += [path for path in chosen if gcd(BLOCK, places[path].shape[-1]) < LEAST]
    forms = {path: Form(INT4, (1, gcd(BLOCK, places[path].shape[-1]))) for path in chosen if path not in eight}
    counts = {} if split is None else device_counts(module, forms, split)
    for path in chosen:
        columns = places[path].shape[-1]
        if path in eight:
            places[path].store(by_rows(INT8, columns), FLOAT32)
        else:
            whole = forms[path].is_by_rows(columns)
            part = columns if whole else columns // counts.get(path, (1,))[-1]
            places[path].store(Form(INT4, (1, gcd(forms[path].block[1], part))), BFLOAT16)
    return chosen


def _chosen(module: Any, possible: Mapping[str, Any], targets: Collection[str] | None) -> list[str]:
    """Returns the paths that targets name, in the order of the parameters."""
    names = list(possible if targets is None else targets)
    chosen = {path for path in possible for target in names if _selects(target, path)}
    idle = [target for target in names if not any(_selects(target, path) for path in possible)]
    if idle:
        known = sorted({part for path in possible for part in path.split("/") if not part.isdigit()})
        raise ArgumentError(
            f"bit_targeted_params {idle} name nothing to quantize", hint=f"names here: {', '.join(known)}"
        )
    return [path for path in flatten(params_of(module)) if path in chosen]


def _selects(target: str, path: str) -> bool:
    wanted = target.replace(".", "/").strip("/")
    return f"/{wanted}/" in f"/{path}/"
