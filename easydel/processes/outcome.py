"""Many processes with one outcome: if one fails, all raise its error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Any, TypeVar

import jax
import numpy as np

from easydel import errors
from easydel.errors import EasyDeLError, ProcessError
from easydel.processes.client import client_of
from easydel.processes.meetings import MEETINGS
from easydel.processes.signs import await_all

T = TypeVar("T")


@contextmanager
def one_outcome() -> Iterator[Callable[[], None]]:
    """Runs the same work in every process of `jax.distributed`; yields a function to call now and then meanwhile.

    If the work of one process fails, that function, or the end of the `with`, raises its error in all others too,
    naming the process; other exceptions arrive as an EasyDeLError. If a process is gone, the others raise an error that
    says so. Without `jax.distributed` it does nothing.
    """
    client = client_of()
    if client is None:
        yield lambda: None
        return
    # every process loads the same models in the same order, as it must run the same programs
    prefix = f"easydel/outcome/{MEETINGS.begin_era()}"
    try:
        yield lambda: _raise_reported(client, prefix)
    except Exception as error:
        _report(client, prefix, error)
        _raise_reported(client, prefix)  # of several failures all raise the one that was reported first
        raise
    finally:
        MEETINGS.begin_era()
    client.key_value_set(f"{prefix}/done/{jax.process_index()}", "")
    await_all(client, f"{prefix}/done", lambda: _raise_reported(client, prefix))


def await_processes(check: Callable[[], object]) -> None:
    """Waits until all processes have called this. `check` may raise meanwhile: what happened to another one."""
    if (client := client_of()) is not None:
        MEETINGS.meet(client, "", check)


def put_together(values: Sequence[Callable[[], T]], use: Callable[[list[Callable[[], T]]], None]) -> None:
    """Calls `use(values)` in process 0, although each of `values` has to be called by all processes together.

    The others make the same calls as process 0, in the same order, and drop the results. If `use` fails, all raise its
    error. All have to call this, with the same values.
    """
    from jax.experimental import multihost_utils

    def told(number: int) -> int:
        return int(multihost_utils.broadcast_one_to_all(np.int32(number)))

    def called(number: int) -> T:
        with lock:  # announcing a number and calling its value is one turn, whichever thread of process 0 takes it
            told(number)
            return values[number]()

    lock, end = Lock(), len(values)
    with one_outcome():
        if jax.process_index() != 0:
            while (number := told(end)) != end:
                values[number]()
            return
        try:
            use([partial(called, number) for number in range(len(values))])
        finally:
            told(end)


def _report(client: Any, prefix: str, error: Exception) -> None:
    if not isinstance(error, EasyDeLError):
        error = EasyDeLError(f"{type(error).__name__}: {error}")
    told = isinstance(error, ProcessError)  # it is about all processes
    problem = error.problem if told else f"process {jax.process_index()}: {error.problem}"
    fields = {"kind": type(error).__name__, "problem": problem, "file": error.file, "tensor": error.tensor}
    try:
        client.key_value_set(f"{prefix}/failed/error", json.dumps(fields | {"hint": error.hint}))
    except jax.errors.JaxRuntimeError:  # the key exists: another process failed before this one
        return


def _raise_reported(client: Any, prefix: str) -> None:
    reports = client.key_value_dir_get(f"{prefix}/failed/")
    if not reports:
        return
    fields = json.loads(reports[0][1])
    kind = getattr(errors, fields.pop("kind"), EasyDeLError)
    raise kind(fields.pop("problem"), **fields) from None
