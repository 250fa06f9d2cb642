"""Meetings: all processes wait for each other, and hear what each says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from easydel.processes.signs import await_all


@dataclass
class Meetings:
    """The meetings of this process. They are counted anew in each era.

    All processes begin the same eras, in the same order, but one that fails misses meetings of its era: so the next
    era's have the same names in all of them again.
    """

    era: int = 0
    number: int = 0
    last: str | None = None

    def begin_era(self) -> int:
        """Returns the number of the era that begins."""
        self.era, self.number = self.era + 1, 0
        return self.era

    def meet(self, client: Any, text: str, check: Callable[[], object]) -> dict[int, str]:
        """Says `text`, and returns what each process said, by process; calls `check` meanwhile, which may raise."""
        self.number += 1
        place = f"easydel/met/{self.era}/{self.number}"
        last, self.last = self.last, f"{place}/{jax.process_index()}"
        client.key_value_set(self.last, text)
        said = await_all(client, place, check)
        if last is not None:  # everybody has read the last one before saying this one, or failed
            client.key_value_delete(last)
        return said


MEETINGS = Meetings()
