"""`easydel export`: a Hugging Face checkpoint, whatever the source was."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from easydel.cli.distributed import Processes
from easydel.cli.models import located
from easydel.cli.options import Adapter, Hub, Model, full_dtype
from easydel.cli.tables import size
from easydel.errors import ArgumentError

if TYPE_CHECKING:
    from easydel.checkpoint import Checkpoint


def export(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to write; it must not exist yet, or be empty.")],
    hub: Hub,
    processes: Processes,
    adapter: Adapter = None,
    dtype: Annotated[str | None, typer.Option(help="Dtype of the written weights. Default: as stored.")] = None,
    quantized: Annotated[
        bool, typer.Option("--quantized", help="Keep codes of quantized weights, in compressed-tensors' format.")
    ] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Quantize kernels to int8, with --quantized.")] = False,
    int4: Annotated[bool, typer.Option("--int4", help="Quantize kernels to int4, with --quantized.")] = False,
) -> None:
    """Write a model as a Hugging Face checkpoint, which transformers loads.

    Without --dtype, 16-bit weights stay as they are, bit for bit; those of mixed types and quantized ones (GGUF, int8,
    GPTQ and their like) become float32. With --quantized, kernels of int8, float8 and integers of 2 to 8 bits stay what
    they are. Adapters, named in place of the model or by --adapter, are merged into it.
    """
    if (int8 or int4) and not quantized:
        raise ArgumentError("--int8 and --int4 choose the codes that --quantized writes", hint="add --quantized")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ArgumentError("exists, and is not an empty directory", file=out, hint="choose another, or remove it")
    files = located(model, hub, adapter)
    path = files.path
    from easydel.auto import AutoEasyDeLModelForCausalLM
    from easydel.checkpoint import find_checkpoint, open_checkpoint
    from easydel.source import is_quantized

    stored = open_checkpoint(find_checkpoint(path, follow_links=hub.follow_links))
    floats = is_quantized(path) and not quantized
    chosen = full_dtype(dtype) if dtype else "float32" if floats else lossless_dtype(stored)
    codes = {"load_in_8bit": int8, "load_in_4bit": int4, **({"bit_targeted_params": ["kernel"]} if int8 else {})}
    loaded, _ = AutoEasyDeLModelForCausalLM.from_pretrained(
        path, param_dtype=chosen, auto_shard_params=processes.distributed, **codes, **files.arguments
    )
    loaded.export(out, dtype=chosen, quantized=quantized)
    written = sum(file.stat().st_size for file in out.iterdir())
    print(f"wrote {out}: {size(written)}, weights as {chosen}", file=sys.stderr)


def lossless_dtype(checkpoint: Checkpoint) -> str:
    """Returns a dtype that holds every number of the checkpoint: its only dtype if that has 16 bits, else float32."""
    from easydel.weights.sources import is_number

    dtypes = {str(tensor.dtype) for tensor in checkpoint.values() if is_number(tensor.dtype)}
    only = next(iter(dtypes)) if len(dtypes) == 1 else "float32"
    return only if only in ("bfloat16", "float16") else "float32"
