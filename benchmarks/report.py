"""Writes docs/performance.md and its plots, from the files that the benchmarks wrote with --output.

    python benchmarks/report.py benchmarks/results/*.json

The plots need matplotlib (`pip install -e ".[bench]"`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "performance.md"
HEAD = """# Performance

Measured by the scripts in `benchmarks/`, each on a quiet machine, engines in turn within one run. Compare ratios, never
seconds: machines differ. What is about TPUs is compiled, not run. This page is made by `benchmarks/report.py` from
`benchmarks/results/`, with the raw numbers.

`python benchmarks/accelerator.py` tries a GPU or TPU in at most 8 minutes: logits against the CPU's, fused attention
against ours, the speed of decoding, prompts and training. It ran on none yet: send its file, `accelerator.json`, with
an issue.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    files = sorted(parser.parse_args().results)
    sections = [section(file, json.loads(file.read_text())) for file in files]
    TARGET.write_text("\n".join([HEAD, *sections]))


def section(file: Path, found: dict[str, Any]) -> str:
    picture = plot(found, TARGET.parent / "plots" / f"{file.stem}.svg")
    machine = ", ".join(f"{name} {value}" for name, value in found["machine"].items() if name != "load")
    load = f"; load average {found['machine']['load']:.1f} at the start" if "load" in found["machine"] else ""
    lines = [
        f"## {found['title']}",
        "",
        f"`python benchmarks/{file.stem}.py`; {machine}{load}.",
        "",
        *markdown(found["columns"], found["rows"]),
        "",
        *[f"{note}\n" for note in found["notes"]],
        f"![{found['title']}]({picture.relative_to(TARGET.parent)})",
        "",
    ]
    return "\n".join(lines)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]


def plot(found: dict[str, Any], file: Path) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = file.stem  # the same numbers give the same file
    from matplotlib import pyplot

    names, values = list(found["bars"])[::-1], list(found["bars"].values())[::-1]
    figure, axes = pyplot.subplots(figsize=(8, 0.4 * len(names) + 1))
    bars = axes.barh(names, values, color=["tab:gray" if is_peer(name) else "tab:blue" for name in names])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_xlabel(found["unit"])
    axes.spines[["top", "right"]].set_visible(False)
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    return file


def is_peer(name: str) -> bool:
    return name.startswith(("torch", "transformers", "safetensors", "llama.cpp"))


if __name__ == "__main__":
    main()
