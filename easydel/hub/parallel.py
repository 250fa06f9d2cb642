"""Several files at a time: the first that fails stops the others."""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event
from typing import Any, TypeVar

from huggingface_hub.utils import tqdm

from easydel.errors import HubError

_THREADS = 8
_S = TypeVar("_S")
_T = TypeVar("_T")


def at_once(action: Callable[[_S], _T], items: Collection[_S], halted: Event) -> list[_T]:
    """Returns `action` of each of `items`, several at a time; the first error sets `halted`."""
    with ThreadPoolExecutor(_THREADS) as pool:
        futures = [pool.submit(action, item) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:  # an interrupt from the keyboard too
            halted.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def go_on(halted: Event) -> None:
    """Raises HubError if another file failed."""
    if halted.is_set():
        raise HubError("was given up, since another file failed")


def bar(halted: Event) -> type[tqdm]:
    """Returns a progress bar for terminals only, whose updates end their download early if `halted` is set."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **{"disable": None, **kwargs})

        def update(self, n: float | None = 1) -> bool | None:
            go_on(halted)
            return super().update(n)

    return Bar
