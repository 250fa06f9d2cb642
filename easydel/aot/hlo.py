"""Reads from a compiled program what each device sends to others: XLA's text, loops multiplied out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

Program = Mapping[str, Sequence[str]]  # the instructions of each computation, by its name
ENTRY = ""
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_UNKNOWN = 2**64 - 1  # cycles of what the compiler has no estimate for
# TPUs spread one operation over the fusions that it runs beside: each part has its channel and the name of the chain.
_CHAIN = re.compile(r'\bchannel_id=(\d+),.*chain_id="(\d+)"')
# The ways in which XLA writes groups of devices: axes of a mesh, a transposed grid, and lists.
_BY_AXES = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_BY_GRID = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}")


@dataclass(frozen=True)
class Collective:
    """A collective operation of a program: its kind, the mesh axes that it goes over, and how often it is run.

    `sent` is the number of bytes that one device sends in one run, by a ring; `largest` the number of elements of the
    largest array before or after it, on one device.
    """

    kind: str
    axes: tuple[str, ...]
    sent: int
    largest: int
    times: int

    @property
    def total(self) -> int:
        """Bytes that a device sends in all runs together."""
        return self.sent * self.times


def collectives(text: str, sizes: Mapping[str, int]) -> list[Collective]:
    """Returns the collectives of a program, given as `compiled.as_text()`, for a mesh with axes of these `sizes`.

    A loop counts as often as it is known to run, otherwise once.
    """
    program = dict(_computations(text))
    found: dict[Any, Collective] = {}
    for name, times in _times(program).items():
        scattered = name.startswith("all-reduce-scatter")
        for place, line in enumerate(program.get(name, ())):
            if match := _INSTRUCTION.match(line):
                one = _collective(match[2], match[1], match[3], times, sizes, scattered=scattered)
                chain = _CHAIN.search(line)
                if one is not None:
                    found.setdefault(chain.groups() if chain else (name, place), one)
    return list(found.values())


def cycles(text: str) -> int:
    """Returns the compiler's estimate of a TPU program's clock cycles: loops multiplied out, the longest of branches.

    Left out are Pallas kernels, and waiting for other chips.
    """
    program = dict(_computations(text))

    @cache
    def of(name: str) -> int:
        return sum(map(of_line, program.get(name, ())))

    def of_line(line: str) -> int:
        inner = [of(called) for called in _called(line)]
        together = max(inner, default=0) if " conditional(" in line else sum(inner)
        own = sum(int(count) for count in _CYCLES.findall(line) if int(count) < _UNKNOWN)
        return own + together * (_trips(line, program) if " while(" in line else 1)

    return of(ENTRY)


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = None, []
    for line in text.splitlines():
        if match := _HEADER.match(line):
            name, lines = ENTRY if match[1] else match[2], []
        elif line.rstrip() == "}" and name is not None:  # what a kernel says of itself may have lines of its own
            yield name, lines
            name = None
        elif name is not None:
            lines.append(line)


def _times(program: Program) -> dict[str, int]:
    """Returns how often each computation runs when the entry runs once."""
    times: dict[str, int] = {}

    def visit(name: str, factor: int) -> None:
        times[name] = times.get(name, 0) + factor
        for line in program.get(name, ()):
            trips = _trips(line, program) if " while(" in line else 1
            for called in _called(line):
                visit(called, factor * trips)

    visit(ENTRY, 1)
    return times


def _called(line: str) -> Iterator[str]:
    if "=" in line:
        yield from _CALLED.findall(line)
        for names in _BRANCHES.findall(line):
            yield from (name.strip().lstrip("%") for name in names.split(","))


def _trips(line: str, program: Program) -> int:
    """Returns how often a loop runs: as XLA says, or as a condition `counter < constant` does; otherwise 1."""
    if known := _KNOWN_TRIPS.search(line):
        return int(known[1])
    name = _CONDITION.search(line)
    condition = "\n".join(program.get(name[1], ())) if name else ""
    limits = re.findall(r" = [su]32\[\][^=]* constant\((\d+)\)", condition)
    return int(limits[0]) if len(limits) == 1 and "direction=LT" in condition else 1


def _collective(
    kind: str, types: str, rest: str, times: int, sizes: Mapping[str, int], *, scattered: bool
) -> Collective | None:
    started, kind = kind.endswith("-start"), kind.removesuffix("-start")
    arrays = [(math.prod(map(int, dims.split(",") if dims else ())), bits) for _, bits, dims in _ARRAY.findall(types)]
    if started and kind != "all-reduce":  # operands, results, and perhaps flags
        arrays = [array for array in arrays if array[0] > 1]
        arrays = arrays[len(arrays) // 2 :]
    moved = sum(elements * int(bits or 8) / 8 for elements, bits in arrays)
    members = _members(rest, sizes)
    if len(members) == 1:
        return None  # over an axis of one device nothing moves
    others = (len(members) - 1) / len(members)
    per_kind = {
        "all-gather": moved * others,
        "all-reduce": moved * others * (1 if scattered else 2),
        "reduce-scatter": moved * (len(members) - 1),
        "all-to-all": moved * others,
        "ragged-all-to-all": moved * others,
        "collective-permute": moved,
    }
    if kind not in per_kind:
        return None
    largest = max((elements for elements, _ in arrays), default=0) * (len(members) if kind == "reduce-scatter" else 1)
    name = "reduce-scatter" if scattered else kind
    return Collective(name, _axes(members, sizes), round(per_kind[kind]), largest, times)


def _members(rest: str, sizes: Mapping[str, int]) -> list[int]:
    """Returns the devices of the first group: their numbers in the mesh."""
    if match := _BY_AXES.search(rest):
        dims = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
        chosen = re.findall(r"'(\w+)'", match[2])
        grid = np.arange(math.prod(dims.values())).reshape(list(dims.values()))
        return grid[tuple(slice(None) if name in chosen else 0 for name in dims)].ravel().tolist()
    if match := _BY_GRID.search(rest):
        shape, grid, order = ([int(n) for n in part.split(",")] if part else None for part in match.groups())
        numbers = np.arange(math.prod(grid or ())).reshape(grid or ())
        return numbers.transpose(order).reshape(shape or ())[0].ravel().tolist()
    if match := _LISTED.search(rest):
        return [int(number) for number in match[1].split(",")]
    return list(range(math.prod(sizes.values())))


def _axes(members: Sequence[int], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the mesh axes along which the devices of a group differ."""
    places = np.stack(np.unravel_index(list(members), tuple(sizes.values())))
    return tuple(name for name, row in zip(sizes, places, strict=True) if len(set(row.tolist())) > 1)
