"""The collector of Python's garbage, which is asked to wait where it only costs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_lock = Lock()
_inside = 0  # of all threads
_enabled = False  # before the first of them


@contextmanager
def collected_later() -> Iterator[None]:
    """Puts off the search for garbage in cycles; also a decorator of functions.

    It looks through all objects of the process again and again while many new ones are made. Beside JAX, that is half
    of the time that planning a process's first load takes, and finds nothing, since the new objects are kept.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _inside, _enabled
    with _lock:
        if not _inside:
            _enabled = gc.isenabled()
            gc.disable()
        _inside += 1


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if not _inside and _enabled:
            gc.enable()
