"""Fresh memory in huge or in small pages, whichever the machine gives faster at the moment.

The first touch of a huge page usually takes a third of the time of the small ones in its place. On a machine whose host
took free memory back, or that has to move memory to have 2 MiB in one piece, it can take ten times longer, while small
pages come out of pieces that are there. Which of them it is changes within a load, so it is measured.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from math import inf
from typing import Protocol

import numpy as np

HUGE_PAGE, SMALL_PAGE = 2 << 20, 4 << 10
ADVISED = hasattr(mmap, "MADV_HUGEPAGE")
HUGE = getattr(mmap, "MADV_HUGEPAGE", 14)
SMALL = getattr(mmap, "MADV_NOHUGEPAGE", 15)
POPULATE = 23  # MADV_POPULATE_WRITE, of Linux 5.14
STRETCH = 16 << 20  # bytes for which a choice holds
TRIED = 4  # pages of the other kind that have to be faster, one after the other, before it is taken
SOON, RARELY = 2, 40  # the other kind is looked at when the usual one took so many times what looking costs


def given(memory: np.ndarray) -> None:
    """Asks the system for all pages of contiguous memory at once: two thirds of what their first touches take.

    Older systems, which cannot do that, give them at the first touch.
    """
    if memory.nbytes and (madvise := system_madvise()) is not None:
        start = memory.ctypes.data // SMALL_PAGE * SMALL_PAGE
        madvise(start, memory.ctypes.data + memory.nbytes - start, POPULATE)


@cache
def system_madvise() -> Callable[[int, int, int], int] | None:
    """Returns the system's madvise. Python's own keeps other threads from running meanwhile."""
    found = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None
    if found is not None:
        found.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        found.restype = ctypes.c_int
    return found


class Memory(Protocol):
    """What `mmap.mmap` can do."""

    def madvise(self, option: int, start: int, length: int, /) -> None: ...


def touched(memory: np.ndarray) -> float:
    """Touches each small page, and returns the seconds of the processor that it took: waiting for a turn is none."""
    started = time.thread_time()
    given(memory)
    memory[::SMALL_PAGE] = 0
    return max(time.thread_time() - started, 1e-9)


@dataclass
class Pages:
    """The last first touches of a load's memory, in seconds for a huge page and the small ones like it.

    Fast huge pages come in runs, and a slow one costs as much as ten that are fast save.
    """

    seconds: dict[int, float] = field(default_factory=dict)
    touch: Callable[[np.ndarray], float] = touched
    _since: float = 0  # seconds that the usual kind took since the other one was looked at
    _patience: float = SOON

    @property
    def usual(self) -> int:
        """The kind of pages that is faster, as far as is known: the advice for it."""
        return min((HUGE, SMALL), key=lambda kind: self.seconds.get(kind, 0))

    def choose(self, memory: Memory, whole: np.ndarray, start: int, size: int) -> None:
        """Chooses the pages of `size` bytes from `start` on, which are at huge pages, and touches some of them.

        `whole` is all of the memory as an array.
        """
        stop = start + size
        while start < stop:
            end, before = min(start + STRETCH, stop), self.usual
            for kind, pages in self._looks():
                start = self._look(memory, whole, kind, range(start, min(start + pages * HUGE_PAGE, end), HUGE_PAGE))
            if start < end:
                memory.madvise(self.usual, start, end - start)
                self._since += self.seconds[self.usual] * (end - start) / HUGE_PAGE
            if self.usual != before:
                self._since, self._patience = 0, SOON
            start = end

    def _looks(self) -> list[tuple[int, int]]:
        """Returns the kinds of the next pages to touch and time, and how many of each at most."""
        if not self.seconds:
            return [(SMALL, 1), (HUGE, TRIED)]
        other = HUGE + SMALL - self.usual
        if self._since < self._patience * self.seconds.get(other, 0):
            return [(self.usual, 1)]
        self._since, self._patience = 0, min(2 * self._patience, RARELY)
        return [(self.usual, 1), (other, TRIED)]

    def _look(self, memory: Memory, whole: np.ndarray, kind: int, starts: range) -> int:
        """Touches pages of a kind until one is slower than those of the other kind, and returns where they end."""
        limit, slowest = self.seconds.get(HUGE + SMALL - kind, inf), 0.0
        for start in starts:
            memory.madvise(kind, start, HUGE_PAGE)
            slowest = max(slowest, self.touch(whole[start : start + HUGE_PAGE]))
            self.seconds[kind] = slowest
            if slowest > limit:
                return start + HUGE_PAGE
        return starts.stop
