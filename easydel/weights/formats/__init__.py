"""Checkpoints whose weights are quantized: a reader for each method, by the name that config.json gives it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easydel.checkpoint import Checkpoint
from easydel.errors import UnsupportedModelError
from easydel.weights.formats.mxfp4 import read_mxfp4
from easydel.weights.formats.unpacking import Reader, Unpacking
from easydel.weights.sources import TensorSource

READERS: dict[str, Reader] = {
    "mxfp4": read_mxfp4,
}


def unpacked(settings: Mapping[str, Any], checkpoint: Checkpoint, file: Path | None) -> dict[str, TensorSource]:
    """Returns the tensors with one for each packed matrix. `settings` are from `file` and have a `quant_method`.

    Raises UnsupportedModelError for methods without a reader, and CheckpointError for tensors that are not as the
    method has them.
    """
    method = settings.get("quant_method")
    reader = READERS.get(method) if isinstance(method, str) else None
    if reader is None:
        raise UnsupportedModelError(
            f"the weights are quantized by {method or 'an unknown method'!r}",
            file=file,
            hint="use the unquantized checkpoint, with load_in_8bit=True if memory is short",
        )
    unpacking = Unpacking(checkpoint, settings, checkpoint.metadata, checkpoint.catalog)
    reader(unpacking)
    return unpacking.finished()
