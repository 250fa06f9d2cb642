"""The number of threads to use."""

from __future__ import annotations

import os


def thread_count(most: int) -> int:
    """Returns the number of processors that this process may use, at most `most`."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, most)
