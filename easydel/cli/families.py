"""`easydel families`: the models that can be loaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any

import typer

from easydel.cli.options import Json
from easydel.cli.tables import print_table

FOLDER = Path(__file__).parents[1] / "families"
CHECKPOINTS = FOLDER / "checkpoints.json"  # known repositories on the Hub
LEFT_OUT = FOLDER / "left_out.json"  # what families do without; scripts/make_models.py writes it

All = Annotated[bool, typer.Option("--all", help="Also the language models of transformers that do not load.")]


def families(as_json: Json = False, everything: All = False) -> None:
    """List the model types that can be loaded (the model_type of a config.json), with checkpoints and GGUF's names.

    All of them are read from safetensors, PyTorch and quantized files, sharded, scanned, trained, adapted, stored in 8
    bits and exported. What is left out: packed rows (several documents in a row of training), kept prompts
    (conversations of which only the new part is computed), generation (where tokens see later ones), images and sound.
    """
    found = sorted([*rows(), *refused()], key=itemgetter("model_type")) if everything else rows()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print_table(
        ("model_type", "kind", "gguf", "left out", "checkpoint", "description"),
        [
            (
                row["model_type"],
                kind(row),
                *(listed(names) for names in (row["gguf"], row["left_out"], row["checkpoints"][:1])),
                row["description"],
            )
            for row in found
        ],
    )
    if everything:
        print(f"\n{summary()}")


def rows() -> list[dict[str, Any]]:
    """Returns the facts of each model type, by name."""
    from easydel.families import all_families, all_wrappers
    from easydel.weights.gguf_architectures import gguf_architectures

    lacking = json.loads(LEFT_OUT.read_text())
    found = [
        _facts(family.model_type, _description(family.build), encoder_decoder=family.encoder_decoder)
        | {"left_out": lacking.get(family.name, [])}
        for family in all_families()
    ]
    found += [
        _facts(row.model_type, f"{row.description}: its language model", multimodal=True)
        | {"left_out": ["images and sound"]}
        for row in all_wrappers().values()
    ]
    found.sort(key=itemgetter("model_type"))
    in_gguf, checkpoints = gguf_architectures(), json.loads(CHECKPOINTS.read_text())
    for row in found:
        row["gguf"] = in_gguf.get(row["model_type"], [])
        row["checkpoints"] = checkpoints[row["model_type"]]
    return found


def refused() -> list[dict[str, Any]]:
    """Returns the language models of transformers that do not load, each with the reason as its description."""
    from easydel.families import REFUSED
    from easydel.keys import causal_types

    missing = sorted({*causal_types(), *REFUSED} - {row["model_type"] for row in rows()})
    reasons = {name: REFUSED.get(name, "is not implemented").split(": ")[-1] for name in missing}
    nothing = dict.fromkeys(("gguf", "checkpoints", "left_out"), ())
    return [_facts(name, reasons[name], refused=True) | nothing for name in missing]


def summary() -> str:
    """Returns how many of transformers' causal language models load."""
    from easydel.keys import causal_types

    known = causal_types()
    lost = sum(row["model_type"] in known for row in refused())
    return f"Of the {len(known)} causal language models of transformers, {len(known) - lost} load and {lost} do not."


def kind(row: Mapping[str, Any]) -> str:
    """Returns what is loaded of a model type."""
    if row["refused"]:
        return "refused"
    return "encoder-decoder" if row["encoder_decoder"] else "text of it" if row["multimodal"] else "decoder"


def _description(function: Callable[..., Any]) -> str:
    """Returns the first line of the file that `function` is in."""
    return (sys.modules[function.__module__].__doc__ or "").strip().split("\n")[0]


def listed(names: Sequence[str]) -> str:
    """Returns the names for a column of the table."""
    return ", ".join(names) or "-"


def _facts(
    model_type: str,
    description: str,
    *,
    encoder_decoder: bool = False,
    multimodal: bool = False,
    refused: bool = False,
) -> dict[str, Any]:
    """Returns a row of the table. `multimodal` marks models of which only the language model is loaded."""
    return {
        "model_type": model_type,
        "encoder_decoder": encoder_decoder,
        "multimodal": multimodal,
        "refused": refused,
        "description": description,
    }
