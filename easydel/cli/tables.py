"""Tables and numbers for people."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

from easydel.errors import ArgumentError

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
LEAST_BYTES = 1 << 20  # a smaller number without a unit is a slip
PIPE_WIDTH = 160  # characters; for output that is no terminal, which has no width


def size(count: float) -> str:
    """Returns bytes in a readable unit: "1.5 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def parse_size(text: str) -> int:
    """Returns bytes from "16GiB", "80 GB" or a bare number, which must be too large to be meant as GiB."""
    number = text.strip().rstrip("BKMGTibkmgt").strip()
    unit = text.strip()[len(number) :].strip().upper()
    unit = f"{unit}IB" if unit in ("K", "M", "G", "T") else unit or "B"
    try:
        count = float(number) * UNITS[unit]
    except (KeyError, ValueError):
        count = -1
    if number == text.strip() and 0 < count < LEAST_BYTES:
        raise ArgumentError(f"{text!r} would be {count:.0f} bytes", hint=f"write {count:.0f}GiB, if that is meant")
    if not 0 <= count < 2**63:
        raise ArgumentError(f"{text!r} is no amount of memory", hint="write it as 16GiB, 80GB or a number of bytes")
    return int(count)


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Iterable[str] = (),
    total: Sequence[str] | None = None,
    file: TextIO | None = None,
) -> None:
    """Prints a table on `file` (default: stdout). Columns in `numbers` are right-aligned, `total` is the last row."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.ASCII2, show_edge=False, pad_edge=False)
    right = set(numbers)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    if total is not None:
        table.add_section()
        table.add_row(*total)
    out = file or sys.stdout
    width = None if out.isatty() else PIPE_WIDTH
    Console(file=out, width=width, markup=False, highlight=False).print(table)


def print_facts(facts: Mapping[str, object]) -> None:
    """Prints one "name  value" per line on stdout."""
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
