"""`easydel families`: the models that can be loaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

from easydel.cli.options import Json
from easydel.cli.tables import print_table

CHECKPOINTS = Path(__file__).parents[1] / "families" / "checkpoints.json"  # known repositories on the Hub


def families(as_json: Json = False) -> None:
    """List the model types that can be loaded (the model_type of a config.json), with checkpoints and GGUF's names.

    All of them are read from safetensors, PyTorch and quantized files, sharded, scanned, trained, adapted, stored in 8
    bits and exported.
    """
    found = rows()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print_table(
        ("model_type", "kind", "gguf", "checkpoint", "description"),
        [
            (row["model_type"], kind(row), ", ".join(row["gguf"]) or "-", row["checkpoints"][0], row["description"])
            for row in found
        ],
    )


def rows() -> list[dict[str, Any]]:
    """Returns the facts of each model type, by name."""
    from easydel.families import all_families, all_wrappers
    from easydel.weights.gguf_architectures import gguf_architectures

    found = [
        _facts(family.model_type, _description(family.build), encoder_decoder=family.encoder_decoder)
        for family in all_families()
    ]
    found += [
        _facts(row.model_type, f"{row.description}: its language model", multimodal=True)
        for row in all_wrappers().values()
    ]
    found.sort(key=itemgetter("model_type"))
    in_gguf, checkpoints = gguf_architectures(), json.loads(CHECKPOINTS.read_text())
    for row in found:
        row["gguf"] = in_gguf.get(row["model_type"], [])
        row["checkpoints"] = checkpoints[row["model_type"]]
    return found


def kind(row: Mapping[str, Any]) -> str:
    """Returns what is loaded of a model type."""
    return "encoder-decoder" if row["encoder_decoder"] else "text of it" if row["multimodal"] else "decoder"


def _description(function: Callable[..., Any]) -> str:
    """Returns the first line of the file that `function` is in."""
    return (sys.modules[function.__module__].__doc__ or "").strip().split("\n")[0]


def _facts(
    model_type: str, description: str, *, encoder_decoder: bool = False, multimodal: bool = False
) -> dict[str, Any]:
    """Returns a row of the table. `multimodal` marks models of which only the language model is loaded."""
    return {
        "model_type": model_type,
        "encoder_decoder": encoder_decoder,
        "multimodal": multimodal,
        "description": description,
    }
