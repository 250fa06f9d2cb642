"""Parameter counts and bytes, in the checkpoint and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import jax

from easydel.checkpoint import Checkpoint


def print_sizes(checkpoint: Checkpoint, params: Mapping[str, jax.Array]) -> None:
    """Prints a table by dtype on stdout: the tensors of the files beside the loaded parameters."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "dtype", "tensors", "parameters", "bytes")
    for dtype in sorted({tensor.encoding or str(tensor.dtype) for tensor in checkpoint.values()}):
        found = [tensor for tensor in checkpoint.values() if (tensor.encoding or str(tensor.dtype)) == dtype]
        count = sum(prod(tensor.shape) for tensor in found)
        _row(table, "checkpoint", dtype, len(found), count, sum(tensor.nbytes for tensor in found))
    for dtype in sorted({str(array.dtype) for array in params.values()}):
        arrays = [array for array in params.values() if str(array.dtype) == dtype]
        _row(
            table,
            "loaded",
            dtype,
            len(arrays),
            sum(array.size for array in arrays),
            sum(array.nbytes for array in arrays),
        )
    Console().print(table)


def _row(table: object, side: str, dtype: str, tensors: int, parameters: int, size: int) -> None:
    table.add_row(side, dtype, f"{tensors:,}", f"{parameters:,}", f"{size:,}")  # type: ignore[attr-defined]
