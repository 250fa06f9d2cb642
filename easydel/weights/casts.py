"""Casts between the dtypes of weights, which raise an error rather than lose a number."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from easydel.errors import CheckpointError


def assign(
    out: np.ndarray, values: np.ndarray, name: str, *, argument: str = "param_dtype", file: Path | None = None
) -> None:
    """Casts `values` into `out`. Raises CheckpointError for a finite number that float16 cannot hold.

    The error mentions `name`, the `file` if there is one, and the `argument` that chooses the dtype.
    """
    with np.errstate(over="ignore"):
        np.copyto(out, values, casting="unsafe")
    if out.dtype.kind in "iu" and not np.array_equal(out, values):
        raise CheckpointError(f"values do not fit into {out.dtype}", file=file, tensor=name)
    if out.dtype == np.float16 and values.dtype != np.float16:
        lost = np.isinf(out) & np.isfinite(values.astype(np.float32))
        if lost.any():
            problem = f"{np.count_nonzero(lost)} values do not fit into float16"
            raise CheckpointError(problem, file=file, tensor=name, hint=f"use {argument}=bfloat16")


def too_large(dtype: np.dtype, name: str, file: Path) -> CheckpointError:
    """Returns the error for a tensor whose finite values become infinite as `dtype`."""
    hint = "a dtype with a wider range holds them; allow_nonfinite=True makes them infinite"
    return CheckpointError(f"has finite values that do not fit into {dtype}", file=file, tensor=name, hint=hint)
