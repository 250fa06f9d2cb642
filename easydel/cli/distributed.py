"""`--distributed`: the command as one of several processes, which share a model, on one machine or many."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Annotated, Any, TextIO

import typer

from easydel.errors import ArgumentError

FAILED = 2
# What a process may still take to raise an error of its own, once one of them has failed.
LAST_SECONDS = 10.0


def _processes(help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Several processes", **more)


@dataclass(frozen=True)
class Processes:
    """The place of this process among those of a job."""

    distributed: Annotated[
        bool,
        _processes(
            "Run as one of the processes that SLURM, Open MPI, Kubernetes or a TPU pod has started, or those of "
            "--coordinator: docs/distributed.md. Each runs this command; the first one prints.",
            "--distributed",
        ),
    ] = False
    coordinator: Annotated[str | None, _processes("Address of process 0, as HOST:PORT.")] = None
    num_processes: Annotated[int | None, _processes("Number of processes.", min=1)] = None
    process_id: Annotated[int | None, _processes("Number of this process, from 0.", min=0)] = None

    def __post_init__(self) -> None:
        given = {
            "--coordinator": self.coordinator,
            "--num-processes": self.num_processes,
            "--process-id": self.process_id,
        }
        missing = [name for name, value in given.items() if value is None]
        if missing and len(missing) < len(given):
            raise ArgumentError(f"{' and '.join(missing)} missing", hint=f"{', '.join(given)} belong together")
        if not missing and not self.distributed:
            raise ArgumentError(f"{', '.join(given)} without --distributed", hint="add it")
        if self.coordinator is not None and not self.coordinator.rpartition(":")[2].isdecimal():
            raise ArgumentError(f"--coordinator {self.coordinator!r} has no port", hint="write it as host:1234")
        if not missing and (self.process_id or 0) >= (self.num_processes or 1):
            raise ArgumentError(f"--process-id {self.process_id} of --num-processes {self.num_processes}: count from 0")

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Joins the other processes, and lets all but process 0 be silent. If one fails, all end."""
        if not self.distributed:
            yield
            return
        out = _own_output()
        _join(self.coordinator, self.num_processes, self.process_id)
        import jax

        from easydel.processes.client import client_of
        from easydel.processes.signs import watched

        shown = sys.stderr

        def told(why: str) -> None:
            print(f"easydel: {why}", file=shown, flush=True)
            _end_soon()

        watch = watched(client_of())
        watch.tell = told
        with _printing(out if jax.process_index() == 0 else None):
            try:
                yield
            except Exception as error:
                watch.end(error)
                _end_soon()
                raise


def _own_output() -> TextIO:
    """Returns this process's stdout, and sends to stderr what libraries write there past Python, as Gloo does.

    It stays so: what they have written may still be in a buffer of C until the process ends.
    """
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    return open(own, "w", encoding=sys.stdout.encoding)


@contextmanager
def _printing(out: TextIO | None) -> Iterator[None]:
    """Prints to `out`; without it prints nothing, not on stderr either, until there is an exception."""
    with ExitStack() as ways:
        nowhere = ways.enter_context(open(os.devnull, "w"))
        ways.enter_context(redirect_stdout(out or nowhere))
        if out is None:
            ways.enter_context(redirect_stderr(nowhere))
        yield


def _end_soon() -> None:
    """Ends this process in a while, however it is waiting: for others in a computation, or for all to end together."""
    timer = threading.Timer(LAST_SECONDS, os._exit, [FAILED])
    timer.daemon = True
    timer.start()


def _join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    import jax

    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (ValueError, RuntimeError) as error:
        problem = f"--distributed: {str(error).splitlines()[0]}"
        hint = "pass --coordinator HOST:PORT, --num-processes and --process-id where nothing tells of the others"
        raise ArgumentError(problem, hint=hint) from None
