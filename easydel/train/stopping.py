"""The ends of a training before its last step: Ctrl-C, and evaluations that no longer get better."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax


class Interrupt:
    """Whether Ctrl-C was pressed since `noticed` was entered."""

    def __init__(self) -> None:
        self.asked = False

    def __bool__(self) -> bool:
        return self.asked

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """Lets the first Ctrl-C only be noted, so that the step that runs can end; the second one interrupts.

        Only in a main thread, which alone gets signals, and where there is one process: others would wait for it.
        """
        if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def note(*_: Any) -> None:
            self.asked = True
            signal.signal(signal.SIGINT, before)
            print("stopping after this step; Ctrl-C again stops at once, and loses it", file=sys.stderr)

        if not callable(before):  # ignored, as in a shell's background jobs
            yield
            return
        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def best(lines: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Returns the line of the evaluation with the lowest loss, the first of equal ones; None if there is none."""
    return min((line for line in lines if "eval_loss" in line), key=lambda line: line["eval_loss"], default=None)


def exhausted(lines: Sequence[Mapping[str, Any]], patience: int | None) -> bool:
    """Whether the last `patience` evaluations had no lower loss than the one before them."""
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    return patience is not None and len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])
