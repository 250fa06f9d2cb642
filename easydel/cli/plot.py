"""`easydel plot`: the losses of trainings as a picture."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from easydel.errors import ArgumentError

SMOOTHED = 50  # points that a curve's mean is drawn of at least, where steps alone would be a cloud


def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Directories that train wrote to (--out).")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The picture, .svg, .png or .pdf. Default: RUN/losses.svg.")
    ] = None,
) -> None:
    """Draw the losses of RUN by step, of training and of evaluation; several runs share one picture."""
    from easydel.train.logs import LOSSES, read_log

    lines = {run: read_log(run) for run in runs}
    if empty := [str(run) for run, found in lines.items() if not found]:
        raise ArgumentError(f"{', '.join(empty)} has no {LOSSES} with a loss", hint="name the --out of a training")
    picture = out or runs[0] / "losses.svg"
    draw(lines, picture)
    print(f"wrote {picture}", file=sys.stderr)


def draw(lines: dict[Path, list[dict[str, Any]]], picture: Path) -> None:
    """Draws the lines of each run."""
    from easydel.train.reading import needed

    needed("matplotlib").use("agg")  # no window
    axes: Any
    figure, axes = needed("matplotlib.pyplot").subplots(figsize=(8, 4.5), layout="constrained")
    for run, found in lines.items():
        name = run.resolve().name if len(lines) > 1 else ""
        steps = [line for line in found if "loss" in line]
        held = [line for line in found if "eval_loss" in line]
        losses = [line["loss"] for line in steps]
        (curve,) = axes.plot([line["step"] for line in steps], losses, alpha=0.3, linewidth=1)
        width = max(1, len(losses) // SMOOTHED)
        means = [sum(part) / len(part) for i in range(len(losses)) if (part := losses[max(0, i - width + 1) : i + 1])]
        label = f"{name} training".strip()
        axes.plot([line["step"] for line in steps], means, color=curve.get_color(), label=label)
        if held:
            where, values = [line["step"] for line in held], [line["eval_loss"] for line in held]
            axes.plot(where, values, "o--", color=curve.get_color(), label=f"{name} evaluation".strip())
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(picture)
    except (OSError, ValueError) as error:  # of a format that it does not know
        raise ArgumentError(f"cannot be written: {error}", file=picture) from None
