"""The hash of a file that arrives in ranges, as parts of parameters do: nearly in the order of the file."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

from easydel.errors import HubError
from easydel.hub.verify import Digest

HELD_BYTES = 512 << 20  # of ranges that wait for those before them: a few threads' work, and no more
# Of a file that nobody needed: as many bytes are received for the hash alone.
BRIDGED_BYTES, BRIDGED_SHARE = 16 << 20, 1 / 50


class RangeHash:
    """Hashes ranges of one file in the order of the file; threads may share it.

    A range that arrives before its turn is held until then. `verdict` says how the hash compares with the `stated` one.
    """

    def __init__(self, size: int, stated: Digest | None, shown: str):
        self._size, self._stated, self._shown = size, stated, shown
        self._hash = hashlib.new(stated.kind if stated else "sha256", usedforsecurity=False)
        if stated is not None and stated.kind == "sha1":
            self._hash.update(b"blob %d\0" % size)
        self._position = 0
        self._held: dict[int, bytes] = {}
        self._lock = threading.Lock()
        self._reason = "" if stated else "not compared: the Hub states no hash"

    def leave(self, reason: str) -> None:
        """Hashes no further."""
        with self._lock:
            self._give_up(reason)

    def add(self, start: int, content: memoryview) -> None:
        """Takes the bytes from `start` on. Raises HubError if they complete the file, and it is not the stated one."""
        with self._lock:
            if self._reason or not len(content):
                return
            if start < self._position or start in self._held:
                self._give_up("parts of it were received more than once")
                return
            if start > self._position:
                self._hold(start, content)
                return
            self._take(content)
            while (held := self._held.pop(self._position, None)) is not None:
                self._take(held)
            if min(self._held, default=self._size) < self._position:
                self._give_up("parts of it were received more than once")
            elif self._position == self._size:
                self._compare()

    def verdict(self, read_into: Callable[[int, memoryview], None]) -> str:
        """Returns what is known of the file once everything was received that is needed.

        `read_into` fills memory with the bytes from some place on: the few that were not needed are received by it.
        """
        missing = self._size - self._position - sum(map(len, self._held.values()))
        if not self._reason and missing > min(BRIDGED_BYTES, self._size * BRIDGED_SHARE):
            self.leave(f"{missing:,} bytes of it were not needed")
        while not self._reason:
            stop = min(self._held, default=self._size)
            gap = bytearray(stop - self._position)
            read_into(self._position, memoryview(gap))  # which adds it
        return self._reason

    def _hold(self, start: int, content: memoryview) -> None:
        if sum(map(len, self._held.values())) + len(content) > HELD_BYTES:
            self._give_up("too much of it arrived in another order")
        else:
            self._held[start] = bytes(content)

    def _give_up(self, reason: str) -> None:
        self._reason = self._reason or f"not compared: {reason}"
        self._held.clear()

    def _take(self, content: memoryview | bytes) -> None:
        self._hash.update(content)
        self._position += len(content)

    def _compare(self) -> None:
        assert self._stated is not None
        found = Digest(self._stated.kind, self._hash.hexdigest())
        if found != self._stated:
            problem = f"arrived damaged: it has {found}, but the Hub states {self._stated}"
            raise HubError(problem, file=self._shown, hint="load it again, or without stream=True, which tries twice")
        self._reason = f"{found.kind} as the Hub states"
