"""Checkpoints whose weights are quantized: a reader for each method, by the name that config.json gives it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easydel.checkpoint import Checkpoint
from easydel.config import shown
from easydel.errors import UnsupportedModelError
from easydel.weights.formats.awq import read_awq
from easydel.weights.formats.bitnet import read_bitnet
from easydel.weights.formats.bitsandbytes import read_bitsandbytes
from easydel.weights.formats.compressed_tensors import read_compressed_tensors
from easydel.weights.formats.eight_bits import read_quanto, read_torchao
from easydel.weights.formats.fp8 import read_fbgemm, read_fp8
from easydel.weights.formats.gptq import read_auto_round, read_gptq
from easydel.weights.formats.hqq import read_hqq
from easydel.weights.formats.mlx import read_mlx
from easydel.weights.formats.modelopt import read_modelopt
from easydel.weights.formats.mxfp4 import read_mxfp4
from easydel.weights.formats.quark import read_quark
from easydel.weights.formats.ranged import read_ranged
from easydel.weights.formats.unpacking import Reader, Unpacking
from easydel.weights.sources import TensorSource

READERS: dict[str, Reader] = {
    "auto-round": read_auto_round,
    "awq": read_awq,
    "bitnet": read_bitnet,
    "bitsandbytes": read_bitsandbytes,
    "compressed-tensors": read_compressed_tensors,
    "fbgemm_fp8": read_fbgemm,
    "fp8": read_fp8,
    "gemma": read_ranged,
    "gptq": read_gptq,
    "hqq": read_hqq,
    "metal": read_mlx,
    "mlx": read_mlx,
    "modelopt": read_modelopt,
    "modelopt_fp4": read_modelopt,
    "modelopt_mixed": read_modelopt,
    "modelopt_mxfp8": read_modelopt,
    "mxfp4": read_mxfp4,
    "mxfp8": read_fp8,
    "quanto": read_quanto,
    "quark": read_quark,
    "torchao": read_torchao,
}
# Methods that are known not to be scales over blocks of a matrix, and why.
CODEBOOKS, ROTATED, TILED = "codebooks of vectors", "rotated weights", "the order of a GPU's tiles"
UNREADABLE = {
    "aqlm": CODEBOOKS,
    "vptq": CODEBOOKS,
    "spqr": "weights in two parts, one of them sparse",
    "quip": ROTATED,
    "quip_sharp": ROTATED,
    "higgs": ROTATED,
    "fp_quant": ROTATED,
    "exl2": TILED,
    "exl3": TILED,
    "eetq": TILED,
    "marlin": TILED,
    "gptq_marlin": TILED,
    "gptq_marlin_24": TILED,
    "awq_marlin": TILED,
    "fouroversix": "a layout that is not known here",
    "sinq": "a layout that is not known here",
    "nvfp4": "a GPU's packing that no file keeps",
}


def unpacked(settings: Mapping[str, Any], checkpoint: Checkpoint, file: Path | None) -> dict[str, TensorSource]:
    """Returns the tensors with one for each packed matrix. `settings` are from `file` and have a `quant_method`.

    Raises UnsupportedModelError for methods without a reader, and CheckpointError for tensors that are not as the
    method has them.
    """
    method = settings.get("quant_method")
    reader = READERS.get(method) if isinstance(method, str) else None
    if reader is None:
        because = f" ({UNREADABLE[method]})" if isinstance(method, str) and method in UNREADABLE else ""
        raise UnsupportedModelError(
            f"the weights are quantized by {shown(method) if method else 'an unknown method'}{because}",
            file=file,
            hint="use the unquantized checkpoint, with load_in_8bit=True if memory is short, or one in fp8, "
            "compressed-tensors, GPTQ or AWQ",
        )
    unpacking = Unpacking(checkpoint, settings, checkpoint.metadata, checkpoint.catalog, file)
    reader(unpacking)
    return unpacking.finished()
