"""Signs of life: each process gives some while it runs, and the others notice when they stop."""

from __future__ import annotations

import atexit
import logging
import socket
import threading
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax

from easydel.errors import ProcessError
from easydel.processes.client import POLL_SECONDS, client_of

logger = logging.getLogger(__name__)

EVERY_SECONDS = 2.0
# JAX itself waits for 100 seconds, and then aborts the process without an exception.
LOST_SECONDS = 30.0
KEYS = "easydel/alive"
ENDED, FAILED = "ended", "failed"
HINT = "look there for the reason, and start all processes again: a training goes on from its last checkpoint"


@dataclass
class Watch:
    """The thread of this process that gives signs of life, and looks for those of the others.

    `gone` tells of each process that runs no more, why that is known. Of those that did not just end, `tell` is called
    with the reason.
    """

    client: Any
    process: int
    gone: dict[int, str] = field(default_factory=dict)
    tell: Callable[[str], object] = lambda why: logger.error("%s; %s", why, HINT)
    _seen: dict[int, tuple[str, float]] = field(default_factory=dict)
    _last: bool = False

    def start(self) -> None:
        atexit.register(self.end)
        threading.Thread(target=self._run, name="easydel-signs", daemon=True).start()

    def end(self, error: Exception | None = None) -> None:
        """Lets the others know that this process ends, and the error that it fails with."""
        if not self._last:
            self._last = True
            self._say(ENDED if error is None else FAILED, "" if error is None else str(error))

    def _run(self) -> None:
        number = 0
        while client_of() is self.client:
            try:
                if not self._last:
                    self._say(str(number))
                signs = self.client.key_value_dir_get(f"{KEYS}/")
            except jax.errors.JaxRuntimeError as error:
                if client_of() is self.client:
                    self._lose(0, f"process 0, which all others talk to, is out of reach: {str(error).splitlines()[0]}")
                return
            self._look({_process(key): sign for key, sign in signs}, time.monotonic())
            number += 1
            time.sleep(EVERY_SECONDS)

    def _say(self, sign: str, why: str = "") -> None:
        if client_of() is self.client:
            text = f"{sign} {socket.gethostname()} {why}"
            self.client.key_value_set(f"{KEYS}/{self.process}", text, allow_overwrite=True)

    def _look(self, signs: dict[int, str], now: float) -> None:
        for process, sign in signs.items():
            number, host, why = sign.split(" ", 2)
            if process not in self._seen or self._seen[process][0] != sign:
                self._seen[process] = sign, now
            if process in self.gone:
                continue
            if number == ENDED:
                self.gone[process] = f"process {process} on {host} has ended"
            elif number == FAILED:
                self._lose(process, f"process {process} on {host} has failed: {why}")
            elif now - self._seen[process][1] > LOST_SECONDS:
                self._lose(
                    process, f"process {process} on {host} has given no sign of life for {LOST_SECONDS:.0f} seconds"
                )

    def _lose(self, process: int, why: str) -> None:
        self.gone[process] = why
        self.tell(why)

    def error(self, missing: Container[int]) -> ProcessError | None:
        """Returns an error that tells which of the `missing` processes is gone, if one is."""
        found = [why for process, why in sorted(self.gone.items()) if process in missing]
        return ProcessError(found[0], hint=HINT) if found else None


_watches: list[Watch] = []


def watched(client: Any) -> Watch:
    """Returns the watch of this process; the first call starts it."""
    if not _watches or _watches[-1].client is not client:
        _watches.append(Watch(client, jax.process_index()))
        _watches[-1].start()
    return _watches[-1]


def await_all(client: Any, folder: str, check: Callable[[], object] = lambda: None) -> dict[int, str]:
    """Returns what each process has set under `folder`, by process, once all have; calls `check` now and then.

    Raises ProcessError if a process is gone that has not set its part.
    """
    watch, processes = watched(client), range(jax.process_count())
    while True:
        gone = set(watch.gone)  # asked first: a process may set its part, and end
        said = {_process(key): text for key, text in client.key_value_dir_get(f"{folder}/")}
        missing = [process for process in processes if process not in said]
        if not missing:
            return said
        check()
        if (error := watch.error(gone.intersection(missing))) is not None:
            raise error
        time.sleep(POLL_SECONDS)


def _process(key: str) -> int:
    return int(key.rpartition("/")[2])


@contextmanager
def losses_told() -> Iterator[None]:
    """Raises ProcessError in place of JAX's error where a computation fails since another process is gone.

    It takes up to half a minute to know whether that is the reason; an error for lack of memory has another one.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        client = client_of()
        if client is None or "RESOURCE_EXHAUSTED" in str(error):
            raise
        watch, end = watched(client), time.monotonic() + LOST_SECONDS + 2 * EVERY_SECONDS
        while time.monotonic() < end:
            if (known := watch.error(range(jax.process_count()))) is not None:
                raise known from error
            time.sleep(EVERY_SECONDS / 10)
        raise
