"""The meshes of a number of chips that make sense for a program, for `easydel plan --compile --compare`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

WIDEST_TRAINING = 8  # tp: beyond, what each layer sends takes longer than its products


@dataclass(frozen=True)
class Placed:
    """Sizes of the mesh axes dp, fsdp, tp, sp, and what is split over tp otherwise than by default.

    Activations between layers may be split, too; key and value heads may be whole on each device.
    """

    dims: tuple[int, ...]
    split_residual: bool = False
    replicate_kv: bool = False

    @property
    def flags(self) -> str:
        """The flags of every command that ask for it."""
        chosen = {"--split-residual": self.split_residual, "--replicate-kv": self.replicate_kv}
        return " ".join(["--mesh", ",".join(map(str, self.dims)), *(flag for flag, given in chosen.items() if given)])


def sensible(chips: int, rows: int, *, training: bool) -> Iterator[Placed]:
    """Yields meshes to compare: tp of each power of two, and the other chips along fsdp, or sp to generate.

    Training splits its batch over fsdp, and activations between layers over tp: as many bytes, in less memory.
    """
    tp = 1
    while chips % tp == 0:
        others = chips // tp
        if not training:
            yield Placed((1, others, tp, 1))
            if others > 1:
                yield Placed((1, 1, tp, others))
        elif tp <= WIDEST_TRAINING and rows % others == 0:
            yield Placed((1, others, tp, 1), split_residual=tp > 1)
        tp *= 2


def longest(facts: Mapping[str, Any]) -> float:
    """Returns the seconds that a step takes at least."""
    return max(facts["bound_seconds"].values())


def bytes_sent(facts: Mapping[str, Any]) -> int | None:
    """Returns the bytes that a chip sends in a step; None if the compiler does not tell."""
    return None if facts["sent"] is None else sum(kind["bytes"] for kind in facts["sent"])


def best_first(facts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns what was found of each mesh: those that fit first, then by the least time, bytes sent and memory."""

    def order(one: Mapping[str, Any]) -> tuple[Any, ...]:
        return not one["fits"], longest(one), bytes_sent(one) or 0, one["chip_bytes"]["total"]

    return sorted(facts, key=order)
