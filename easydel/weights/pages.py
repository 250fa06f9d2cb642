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
from threading import Lock

import numpy as np

HUGE_PAGE, SMALL_PAGE = 2 << 20, 4 << 10
ADVISED = hasattr(mmap, "MADV_HUGEPAGE")
HUGE = getattr(mmap, "MADV_HUGEPAGE", 14)
SMALL = getattr(mmap, "MADV_NOHUGEPAGE", 15)
POPULATE = 23  # MADV_POPULATE_WRITE, of Linux 5.14
AT_ONCE = 1 << 20  # bytes asked for by a call: while it runs, no other thread can map memory or give advice
STRETCH = 16 << 20  # bytes for which a choice holds; twice as many after each look that finds huge pages fast,
LONGEST = 64 << 20  # up to this
TRIED = 4  # pages of the other kind that have to be faster at the mean before it is taken
AGAIN = 3  # pages of the usual kind at most: more after one that the other kind beats
WEIGHT = 1 / 24  # of a page in the mean of its kind: one or two slow ones in a run of fast ones change nothing
SLOWER = 3  # times as long as the fastest memory of its size took to be filled: then it is looked at anew
SOON, RARELY = 2, 16  # the other kind is looked at when the usual one took so many times what looking costs


def given(memory: np.ndarray) -> bool:
    """Asks the system for all pages of contiguous memory at once: two thirds of what their first touches take.

    Older systems cannot do that: then it returns False, and they come at the first touch.
    """
    start, stop = memory.ctypes.data // SMALL_PAGE * SMALL_PAGE, memory.ctypes.data + memory.nbytes
    return all(_madvise(at, min(at + AT_ONCE, stop), POPULATE) for at in range(start, stop, AT_ONCE))


def advise(memory: np.ndarray, kind: int, before: int | None = None) -> None:
    """Asks for pages of this `kind` where memory, which starts and ends at huge pages, is first touched.

    Memory that was advised just that `before` is left alone: the system takes advice only while no thread gets pages.
    """
    if kind != before:
        start = memory.ctypes.data
        _madvise(start, start + memory.nbytes, kind)


def _madvise(start: int, stop: int, advice: int) -> bool:
    madvise = system_madvise()
    return start < stop and madvise is not None and madvise(start, stop - start, advice) == 0


@cache
def system_madvise() -> Callable[[int, int, int], int] | None:
    """Returns the system's madvise. Python's own keeps other threads from running meanwhile."""
    found = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None
    if found is not None:
        found.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        found.restype = ctypes.c_int
    return found


def touched(memory: np.ndarray) -> float:
    """Touches each small page, and returns the seconds of the processor that it took: waiting for a turn is none."""
    started = time.thread_time()
    if not given(memory):
        memory[::SMALL_PAGE] = 0
    return max(time.thread_time() - started, 1e-9)


@dataclass
class Pages:
    """The mean of the last first touches, in seconds for a huge page and the small ones like it.

    A slow huge page costs as much as ten that are fast save, and both come in runs. What one load has seen is where the
    next begins. Several threads may choose, of which one at a time looks; the others go on with what is known.
    """

    seconds: dict[int, float] = field(default_factory=dict)
    touch: Callable[[np.ndarray], float] = touched
    advise: Callable[[np.ndarray, int, int], None] = advise
    usual: int = HUGE  # the kind of pages that is faster, as far as is known: the advice for it
    _least: float = inf  # seconds of the fastest small pages
    _since: float = 0  # seconds that the usual kind took since the other one was looked at
    _patience: float = SOON
    _stretch: int = STRETCH
    _rate: float = inf  # seconds for each byte of the memory that was filled fastest
    _left: int = 0  # bytes for which the last choice still holds; threads that count at once only move the next look
    _turn: Lock = field(default_factory=Lock)

    @property
    def _fast(self) -> bool:
        """True if huge pages are faster than small ones ever were, which then need no look."""
        return self.usual == HUGE and self.seconds.get(HUGE, inf) < self._least

    def choose(self, memory: np.ndarray, kind: int) -> None:
        """Chooses the pages of contiguous memory that was never touched, and now and then touches some of them.

        The memory was advised to come in pages of this `kind`.
        """
        size = memory.nbytes
        if self._left >= size and kind == self.usual:  # a load asks hundreds of times
            self._left -= size
            return
        if not ADVISED or size < HUGE_PAGE:
            return
        first = memory.ctypes.data
        start, stop = -first % HUGE_PAGE, size - (first + size) % HUGE_PAGE
        flat = memory.reshape(-1).view(np.uint8)
        while start < stop:
            if self._left <= 0 and self._turn.acquire(blocking=False):
                try:
                    start = self._look(flat, kind, start, stop)
                finally:
                    self._turn.release()
                self._left = self._stretch
            end = min(start + max(self._left // HUGE_PAGE, 1) * HUGE_PAGE, stop)
            if start < end:
                self.advise(flat[start:end], self.usual, kind)
            self._left -= end - start
            start = end

    def filled(self, size: int, seconds: float) -> None:
        """Tells what filling memory took of the processor's time: if that is long for its size, a look comes next."""
        if size < HUGE_PAGE or self.usual != HUGE:
            return
        if seconds > SLOWER * self._rate * size:
            self._left = 0
        self._rate = min(self._rate, seconds / size)

    def _look(self, memory: np.ndarray, before: int, start: int, stop: int) -> int:
        """Touches pages from `start` on, and returns where those that it touched end."""
        if len(self.seconds) < 2:
            for kind, most in ((SMALL, 1), (HUGE, TRIED)):
                if kind not in self.seconds:
                    start = self._try(memory, before, kind, _huge_pages(start, stop, most))
        else:
            start = self._go_on(memory, before, _huge_pages(start, stop, AGAIN))
            other = HUGE + SMALL - self.usual
            if self._since >= self._patience * self.seconds.get(other, 0) and not self._fast:
                self._since, self._patience = 0, min(2 * self._patience, RARELY)
                start = self._try(memory, before, other, _huge_pages(start, stop, TRIED))
        usual = min((HUGE, SMALL), key=lambda kind: self.seconds.get(kind, 0))
        if self.usual != usual:
            self.usual, self._since, self._patience = usual, 0, SOON
        self._stretch = min(2 * self._stretch, LONGEST) if self._fast else STRETCH
        self._since += self.seconds.get(usual, 0) * self._stretch / HUGE_PAGE
        return start

    def _go_on(self, memory: np.ndarray, before: int, starts: range) -> int:
        """Touches pages of the usual kind until one is as fast as the other kind, and returns where they end."""
        kind, limit = self.usual, self.seconds.get(HUGE + SMALL - self.usual, inf)
        for start in starts:
            seconds = self._touch(memory, before, kind, start)
            self.seconds[kind] += WEIGHT * (seconds - self.seconds[kind])
            if seconds <= limit:
                return start + HUGE_PAGE
        return starts.stop

    def _try(self, memory: np.ndarray, before: int, kind: int, starts: range) -> int:
        """Touches pages of a kind anew until one is slower than the other kind, and returns where they end."""
        limit, total = self.seconds.get(HUGE + SMALL - kind, inf), 0.0
        for count, start in enumerate(starts, 1):
            seconds = self._touch(memory, before, kind, start)
            total += seconds
            self.seconds[kind] = total / count
            if seconds > limit:
                return start + HUGE_PAGE
        return starts.stop

    def _touch(self, memory: np.ndarray, before: int, kind: int, start: int) -> float:
        page = memory[start : start + HUGE_PAGE]
        self.advise(page, kind, before)
        seconds = self.touch(page)
        if kind == SMALL:
            self._least = min(self._least, seconds)
        return seconds


def _huge_pages(start: int, stop: int, most: int) -> range:
    return range(start, min(start + most * HUGE_PAGE, stop), HUGE_PAGE)
