"""`easydel families`: the models that can be loaded."""

from __future__ import annotations

import json
import sys

from easydel.cli.options import Json
from easydel.cli.tables import print_table


def families(as_json: Json = False) -> None:
    """List the model types that can be loaded (the model_type of a config.json)."""
    from easydel.families import all_families

    found = [
        {
            "model_type": family.model_type,
            "encoder_decoder": family.encoder_decoder,
            "description": (sys.modules[family.build.__module__].__doc__ or "").strip().split("\n")[0],
        }
        for family in all_families().values()
    ]
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print_table(
        ("model_type", "kind", "description"),
        [
            (
                str(row["model_type"]),
                "encoder-decoder" if row["encoder_decoder"] else "decoder",
                str(row["description"]),
            )
            for row in found
        ],
    )
