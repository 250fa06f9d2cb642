"""Parts of all benchmarks: a quiet machine, a table for people, a file for `benchmarks/report.py`."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any


class Worker:
    """A process of an engine. It answers each line of JSON on its stdin by one; `facts` is its first line."""

    def __init__(self, *command: str):
        self.process = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.facts = self._answer()

    def ask(self, question: object) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{json.dumps(question)}\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"an engine stopped with exit code {self.process.wait()}")
        return json.loads(line)


@dataclass(frozen=True)
class Measured:
    """A table of results. `bars` are the numbers to plot, by name, in the unit `unit`."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    bars: Mapping[str, float]
    unit: str
    notes: Sequence[str] = field(default_factory=list)


def quiet_machine(*, force: bool) -> dict[str, Any]:
    """Returns a description of this machine. Raises SystemExit if others are busy on it, unless `force`."""
    load_average, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load_average > 0.5 * cores and not force:
        raise SystemExit(f"the load average is {load_average:.1f} on {cores} cores: ratios would mean little (--force)")
    packages = {name: version(name) for name in ("jax", "flax", "torch", "transformers")}
    python = platform.python_version()
    return {"cores": cores, "machine": platform.machine(), "load": load_average, "python": python, **packages}


def stolen() -> int:
    """Returns the time that the host has kept from this machine so far (steal), in ticks; 0 if it is not reported."""
    try:
        return int(Path("/proc/stat").read_text().split()[8])
    except (OSError, IndexError, ValueError):
        return 0


def show(measured: Measured) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*measured.columns, title=measured.title)
    for row in measured.rows:
        table.add_row(*row)
    console = Console(width=140)
    console.print(table)
    for note in measured.notes:
        console.print(note, highlight=False)


def write(file: Path, measured: Measured, machine: Mapping[str, Any], **raw: Any) -> None:
    """Writes a file for `benchmarks/report.py`, with the raw numbers."""
    file.write_text(json.dumps({"machine": machine, **asdict(measured), "raw": raw}, indent=1) + "\n")
