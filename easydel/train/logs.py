"""The log of a training: a line of JSON for each step in a file, a bar or lines on stderr, and what is asked for."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jax

from easydel.errors import ArgumentError
from easydel.train.reading import needed

LOSSES = "losses.jsonl"
LINES = 10  # steps between two lines where there is no terminal to draw a bar on
Line = dict[str, Any]


class Log(Protocol):
    """A place that lines go to: those of steps have a "loss", those of evaluations an "eval_loss"."""

    def __call__(self, line: Line) -> None: ...


@dataclass
class Clock:
    """Measures time, speed and memory."""

    started: float = field(default_factory=time.monotonic)
    # Of the last steps: they are told one step late, or two at once, so that the time of one says nothing.
    ends: deque[float] = field(default_factory=lambda: deque([time.monotonic()], maxlen=10))

    def measured(self, tokens: int) -> Line:
        """Returns seconds since the start, tokens per second with `tokens` in a step, and the most memory so far."""
        now = time.monotonic()
        speed = len(self.ends) * tokens / max(now - self.ends[0], 1e-9)
        self.ends.append(now)
        return {"seconds": round(now - self.started, 3), "tokens_per_second": round(speed, 1), "memory": memory()}

    def pause(self) -> None:
        """Leaves what was since the last step out of the speed: an evaluation, or a checkpoint."""
        self.ends.clear()
        self.ends.append(time.monotonic())


def memory() -> int:
    """Returns the most bytes in use so far on the first device, or where nobody counts these, in this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(stats.get("peak_bytes_in_use") or (peak if sys.platform == "darwin" else peak * 1024))


def check_logs(names: Sequence[str]) -> None:
    """Raises ArgumentError for names of no log, and for those whose package is missing."""
    if isinstance(names, str) or not set(names) <= MORE.keys():
        raise ArgumentError(f"log={names!r}, expected some of {', '.join(MORE)}")
    for name in names:
        needed(name)


@contextmanager
def opened(folder: Path, start: int, steps: int, more: Sequence[str], shown: bool | None) -> Iterator[Log]:
    """Yields a log that writes to all places; of several processes, only the first writes."""
    with ExitStack() as stack:
        places: list[Log] = []
        if jax.process_index() == 0:
            places.append(stack.enter_context(_file(folder, start)))
            places += [stack.enter_context(MORE[name](folder, start)) for name in more]
            if shown is not False:
                draw = sys.stderr.isatty() if shown is None else shown
                places.append(stack.enter_context(_bar(steps, start) if draw else _lines(steps)))

        def write(line: Line) -> None:
            for place in places:
                place(line)

        yield write


@contextmanager
def _file(folder: Path, start: int) -> Iterator[Log]:
    """Opens losses.jsonl with the lines of steps up to `start`: steps after a killed run's checkpoint are redone."""
    kept = [line for line in read_log(folder) if line["step"] <= start]
    with (folder / LOSSES).open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in kept)
        file.flush()

        def write(line: Line) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        yield write


def read_log(folder: Path) -> list[Line]:
    """Returns the lines of losses.jsonl, if it exists, without broken lines that a killed run may leave."""
    file = folder / LOSSES
    lines: list[Any] = []
    for line in file.read_bytes().splitlines() if file.is_file() else []:
        with suppress(ValueError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict) and _is_logged(line)]


def read_losses(folder: Path) -> list[Line]:
    """Returns those of steps."""
    return [line for line in read_log(folder) if "loss" in line]


def _is_logged(line: Mapping[str, Any]) -> bool:
    return isinstance(line.get("step"), int) and isinstance(line.get("loss", line.get("eval_loss")), float)


@contextmanager
def _lines(steps: int) -> Iterator[Log]:
    """Prints the first step, every tenth, the last, and evaluations."""

    def write(line: Line) -> None:
        step = line["step"]
        if "eval_loss" in line or step in (1, steps) or step % LINES == 0:
            print(_text(line, steps), file=sys.stderr)

    yield write


def _text(line: Line, steps: int) -> str:
    parts = [f"step {line['step']:,}/{steps:,}"]
    for key, write in SHOWN.items():
        if line.get(key) is not None:
            parts.append(write(line[key]))
    return "  ".join(parts)


SHOWN: dict[str, Callable[[Any], str]] = {
    "loss": lambda value: f"loss {value:.4f}",
    "eval_loss": lambda value: f"eval loss {value:.4f}",
    "eval_perplexity": lambda value: f"perplexity {value:.2f}",
    "learning_rate": lambda value: f"rate {value:.2e}",
    "tokens_per_second": lambda value: f"{value:,.0f} tokens/s",
    "memory": lambda value: f"{value / 2**30:.1f} GiB",
    "seconds": lambda value: f"{int(value) // 3600}:{int(value) // 60 % 60:02}:{int(value) % 60:02}",
}


@contextmanager
def _bar(steps: int, start: int) -> Iterator[Log]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("Training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=steps, completed=start, text="loss -")

        def write(line: Line) -> None:
            if "eval_loss" in line:
                bar.console.print(_text(line, steps), highlight=False, markup=False)
                return
            shown = [SHOWN[key](line[key]) for key in ("loss", "tokens_per_second") if line.get(key) is not None]
            bar.update(task, completed=line["step"], text="  ".join(shown))

        yield write


@contextmanager
def _tensorboard(folder: Path, start: int) -> Iterator[Log]:
    """Writes TensorBoard's event files into the directory, by its own package, which needs no TensorFlow."""
    events = needed("tensorboard.summary.writer.event_file_writer")
    event, summary = needed("tensorboard.compat.proto.event_pb2"), needed("tensorboard.compat.proto.summary_pb2")
    file = events.EventFileWriter(str(folder / "tensorboard"))

    def write(line: Line) -> None:
        values = [summary.Summary.Value(tag=tag, simple_value=value) for tag, value in _values(line).items()]
        made = summary.Summary(value=values)
        file.add_event(event.Event(step=line["step"], wall_time=time.time(), summary=made))

    try:
        yield write
    finally:
        file.close()


@contextmanager
def _wandb(folder: Path, start: int) -> Iterator[Log]:
    """Logs to Weights & Biases, by its own settings and environment; a resumed run is the same run there."""
    wandb = needed("wandb")
    name = folder / "wandb-run.txt"
    known = name.read_text().strip() if start and name.is_file() else None
    run = wandb.init(dir=str(folder), name=folder.name, id=known, resume="allow")
    name.write_text(run.id)
    try:
        yield lambda line: run.log(_values(line), step=line["step"])
    finally:
        run.finish()


def _values(line: Line) -> dict[str, float]:
    """Returns the numbers of a line under names that both services group: "train/loss", "eval/loss"."""
    return {
        f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}": float(value)
        for key, value in line.items()
        if key != "step" and value is not None and math.isfinite(value)
    }


MORE: dict[str, Any] = {"tensorboard": _tensorboard, "wandb": _wandb}
