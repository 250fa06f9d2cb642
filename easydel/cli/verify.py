"""`easydel verify`: compares our logits with those of transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from typing import Annotated

import typer

from easydel.cli.models import is_saved, located
from easydel.cli.options import Adapter, Hub, Json, Model
from easydel.cli.tables import print_facts
from easydel.errors import ArgumentError

FAILED = 1


def verify(
    model: Model,
    hub: Hub,
    adapter: Adapter = None,
    length: Annotated[int, typer.Option(min=4, help="Tokens of each of the two sequences.")] = 16,
    as_json: Json = False,
) -> None:
    """Compare logits with transformers' on random tokens, one sequence of them left-padded; both in float32 on the CPU.

    Passes if they differ by at most 2e-4 of the largest logit + 1e-5; the exit code is 1 otherwise. Needs torch and
    transformers (for adapters PEFT, too), and memory for one of the models at a time.
    """
    files = located(model, hub, adapter)
    path = files.path
    from easydel.checkpoint import find_checkpoint

    file = find_checkpoint(path, follow_links=hub.follow_links)[0]
    refuse_missing(
        [
            "torch",
            "transformers",
            *(["accelerate"] if file.suffix == ".gguf" else []),
            *([] if files.adapter is None else ["peft"]),
        ]
    )
    if is_saved(path):
        raise ArgumentError("transformers cannot read what save_pretrained wrote", file=path, hint="export it first")
    from easydel.cli.comparison import compare

    result = compare(path, length, **files.arguments)
    facts = {"path": str(path), **asdict(result), "tolerance": result.tolerance, "passed": result.passed}
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        print_facts({
            "largest difference": f"{result.max_difference:.3g}, allowed {result.tolerance:.3g}",
            "largest logit": f"{result.max_reference:.4g}",
            "weights": "decoded here: transformers cannot read this format" if result.decoded else "read by both",
            "same first choice": f"{result.top1_agreement:.2%} of {result.tokens} tokens",
            "result": "pass" if result.passed else "FAIL",
        })  # fmt: skip
    if not result.passed:
        raise typer.Exit(FAILED)


def refuse_missing(packages: Sequence[str]) -> None:
    """Raises ArgumentError if one of `packages` is not installed: they are no dependencies of ours."""
    if missing := [name for name in packages if find_spec(name) is None]:
        names = " and ".join(missing)
        raise ArgumentError(f"verify needs {names}, not installed here", hint=f"pip install {' '.join(missing)}")
