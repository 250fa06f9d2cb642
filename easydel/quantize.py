"""8-bit storage: one float32 scale per output row, symmetric, rounded to nearest.

Kernels, expert kernels and embeddings can be quantized. Norms, biases, routers and the small parameters of recurrent
mixers never are: they are tiny, and their errors spread.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from easydel.errors import ArgumentError
from easydel.forms import by_rows
from easydel.stored import storable
from easydel.tree import flatten, params_of

# Adding this to a float32 below 2**22 rounds it to an integer, which is in the lowest bits; half goes to even.
ROUNDING = np.float32(3 << 22)
TINY = np.finfo(np.float32).tiny  # below it, 1 / scale would not be finite


@dataclass(frozen=True)
class Int8:
    """A request for 8-bit storage of the parameters that `targets` name (None: all possible), as in `make_int8`."""

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


def make_int8(module: Any, targets: Collection[str] | None) -> list[str]:
    """Declares the targeted parameters int8, with a scale per row, before any value is loaded. Returns their paths.

    `targets` are leaf names ("kernel"), names of modules ("q_proj") or paths ("lm_head/kernel"); None means all.
    Raises ArgumentError for a target that names nothing that can be quantized.
    """
    possible = storable(module)
    names = list(possible if targets is None else targets)
    chosen = {path for path in possible for target in names if _selects(target, path)}
    idle = [target for target in names if not any(_selects(target, path) for path in possible)]
    if idle:
        known = sorted({part for path in possible for part in path.split("/") if not part.isdigit()})
        raise ArgumentError(
            f"bit_targeted_params {idle} name nothing to quantize", hint=f"names here: {', '.join(known)}"
        )
    for path in chosen:
        owner = possible[path]
        owner.store(by_rows(np.dtype(np.int8), owner.shape[-1]), np.dtype(np.float32))
    return [path for path in flatten(params_of(module)) if path in chosen]


def _selects(target: str, path: str) -> bool:
    wanted = target.replace(".", "/").strip("/")
    return f"/{wanted}/" in f"/{path}/"
