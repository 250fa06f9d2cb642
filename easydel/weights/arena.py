"""Memory for parameters, in few large pieces whose pages are chosen: their first touch can cost more than the copy."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from math import prod

import numpy as np

from easydel.weights.pages import HUGE_PAGE, advise

ALIGNMENT = 64  # JAX uses host memory without a copy only at addresses that are multiples of this
ARENA_BYTES = 64 << 20


def allocate(size: int, pages: int) -> np.ndarray:
    """Returns `size` bytes that start at a huge page. They live as long as any array that views them.

    They come in pages of this kind (an advice), unless it is changed before they are touched.
    """
    flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, size + HUGE_PAGE, **flags)
    whole = np.frombuffer(memory, np.uint8)
    start = -whole.ctypes.data % HUGE_PAGE
    filled = size // HUGE_PAGE * HUGE_PAGE  # a huge page for the rest would waste memory
    advise(whole[start : start + filled], pages)
    return whole[start : start + size]


def groups(sizes: Sequence[int]) -> Iterator[range]:
    """Yields consecutive items that share an arena: at least `ARENA_BYTES` together, or the remaining ones."""
    start, total = 0, 0
    for item, size in enumerate(sizes):
        total += padded(size)
        if total >= ARENA_BYTES:
            yield range(start, item + 1)
            start, total = item + 1, 0
    if start < len(sizes):
        yield range(start, len(sizes))


def carve(shapes: Sequence[tuple[tuple[int, ...], np.dtype]], pages: int) -> list[np.ndarray]:
    """Returns arrays of those shapes and dtypes in one new arena, each aligned."""
    sizes = [prod(shape) * dtype.itemsize for shape, dtype in shapes]
    arena, offset = allocate(sum(map(padded, sizes)), pages), 0
    arrays = []
    for (shape, dtype), size in zip(shapes, sizes, strict=True):
        arrays.append(arena[offset : offset + size].view(dtype).reshape(shape))
        offset += padded(size)
    return arrays


def padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
