"""The collector of Python's garbage, which is asked to wait where it only costs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collected_later() -> Iterator[None]:
    """Puts off the search for garbage in cycles; also a decorator of functions.

    It looks through all objects of the process again and again while many new ones are made. Beside JAX, that is half
    of the time that planning a process's first load takes, and finds nothing, since the new objects are kept.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
