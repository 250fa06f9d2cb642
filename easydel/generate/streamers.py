"""Listeners to tokens while they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from easydel.errors import ArgumentError

Listen = Callable[[np.ndarray], Any]


@contextmanager
def listener(streamer: Any, prompt_BT: np.ndarray) -> Iterator[Listen | None]:
    """Yields a function of each step's tokens [B]; None if there is no streamer.

    A streamer of transformers (an object with `put` and `end`) gets the prompt first, and is told of the end.
    """
    if streamer is None:
        yield None
    elif hasattr(streamer, "put") and hasattr(streamer, "end"):
        streamer.put(prompt_BT)
        yield streamer.put
        streamer.end()
    elif callable(streamer):
        yield streamer
    else:
        found = type(streamer).__name__
        raise ArgumentError(f"streamer is a {found}, expected a function, or an object with put and end")
