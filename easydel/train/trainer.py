"""A small trainer: batches of packed text, steps, checkpoints. Killed at any moment, it continues where it was.

A checkpoint holds the trained parameters, the optimizer's state, the number of steps, and the position in the data. So
the losses after a resume are, bit for bit, those of a run that was never stopped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from easydel.errors import ArgumentError, CheckpointError, EasyDeLError, listed
from easydel.lora import AdaptedLinear
from easydel.lora.places import adapted_places
from easydel.module import LanguageModel
from easydel.train.data import batches, needed
from easydel.train.loss import check_causal
from easydel.train.state import Optimizer, State, init_state, without_arrays
from easydel.train.steps import Metrics, check_count, step
from easydel.tree import bind

CHECKPOINTS, LOSSES = "checkpoints", "losses.jsonl"
ADVANCE = Callable[[int, float], None]


@dataclass(frozen=True)
class Settings:
    """Length and data of a training: `batch` sequences of `length` tokens in each of `steps` steps.

    Every `save_every` steps a checkpoint is made, and the last `keep` are kept. See `step` for `accumulate`, `clip` and
    `z_weight`. `seed` determines the data's order. `document_end` is the token that ends documents: with it, tokens see
    their own document only, and the first token of a document is not predicted.
    """

    steps: int
    batch: int = 8
    length: int = 512
    accumulate: int = 1
    clip: float | None = 1.0
    z_weight: float = 0.0
    seed: int = 0
    save_every: int = 100
    keep: int = 2
    document_end: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "length", "accumulate", "save_every", "keep"):
            check_count(name, getattr(self, name))
        if self.length < 2:
            raise ArgumentError(f"length={self.length}, expected at least 2: the first token is never predicted")
        if self.batch % self.accumulate:
            raise ArgumentError(f"batch={self.batch} cannot be cut into accumulate={self.accumulate} equal parts")

    def same(self) -> dict[str, Any]:
        """The settings that must be equal in a resumed run."""
        return {key: value for key, value in asdict(self).items() if key not in ("steps", "save_every", "keep")}


@dataclass(frozen=True)
class Trainer:
    """Trains `model` on `tokens` [any number].

    `directory` gets checkpoints and a losses.jsonl with a line for each step. If it has checkpoints already, `run`
    continues from the last. It refuses where that cannot give the same losses: other data, other settings (all but
    `steps`, `save_every`, `keep`), parameters of other shapes, other values of frozen parameters, other adapters, or
    another `identity` (further values that must be equal, such as the learning rate, which an optimizer does not
    reveal).
    """

    model: LanguageModel
    params: Mapping[str, Any]
    optimizer: Optimizer
    tokens: np.ndarray
    directory: str | PathLike[str]
    settings: Settings
    trainable: Callable[[str], bool] | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)

    def run(self, *, progress: bool | None = None) -> State:
        """Returns the state after `settings.steps` steps (or more, if it was further); the model gets its parameters.

        `progress` None shows a bar on stderr if that is a terminal. Raises ArgumentError for a training that cannot be
        started or resumed, EasyDeLError if the loss is no longer a number.
        """
        settings, folder = self.settings, Path(self.directory)
        self._check()
        data = batches(self.tokens, settings.length, settings.batch, settings.seed, settings.document_end)
        state = init_state(self.model, self.params, self.optimizer, trainable=self.trainable)
        choices = {"accumulate": settings.accumulate, "clip": settings.clip, "z_weight": settings.z_weight}
        advance = step(self.model, self.optimizer, **choices)
        marks = self._marks(state)  # once: a run does not change them
        with _manager(folder, settings) as manager:
            state = self._resumed(manager, state, data, marks)
            start = int(state.count)
            try:
                with _log(folder, start) as log, _bar(settings.steps, start, progress) as shown:
                    waiting: Metrics | None = None  # reported one step late, so that the device never waits for us
                    for count in range(start + 1, settings.steps + 1):
                        state, metrics = advance(state, next(data))
                        if waiting is not None:
                            _tell(log, shown, count - 1, waiting)
                        waiting = metrics
                        if count % settings.save_every == 0 or count == settings.steps:
                            _tell(log, shown, count, metrics)
                            waiting = None
                            self._save(manager, state, data, marks)
            finally:
                bind(self.model, state.params)  # the first step consumed the parameters that the model had
        return state

    def _check(self) -> None:
        check_causal(self.model)
        vocabulary, longest = self.model.record.vocab, self.model.record.longest
        if len(self.tokens) and (self.tokens.max() >= vocabulary or self.tokens.min() < 0):
            raise ArgumentError(f"tokens reach {self.tokens.max()}, and the model has {vocabulary}")
        if longest is not None and self.settings.length > longest:
            raise ArgumentError(f"length={self.settings.length} is longer than the model's {longest} positions")

    def _marks(self, state: State) -> dict[str, Any]:
        """Returns everything that determines the losses of a run, as JSON has it."""
        shapes = jax.tree_util.tree_flatten_with_path(without_arrays(state))[0]
        kinds = [(jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype)) for path, leaf in shapes]
        modules = [place.module for place in adapted_places(self.model)]
        marks = {
            "data": hashlib.sha256(np.ascontiguousarray(self.tokens, np.int32).tobytes()).hexdigest(),
            "parameters": hashlib.sha256(repr(kinds).encode()).hexdigest(),
            "frozen parameters": hashlib.sha256(repr(_sums(state.frozen)).encode()).hexdigest(),
            "adapters": sorted({repr(module.lora) for module in modules if isinstance(module, AdaptedLinear)}),
            **self.settings.same(),
            **self.identity,
        }
        return json.loads(json.dumps(marks))

    def _save(self, manager: Any, state: State, data: Any, marks: Mapping[str, Any]) -> None:
        ocp = needed("orbax.checkpoint")
        place = {"marks": marks, "data": data.get_state()}
        learned = {"trained": state.trained, "moments": state.moments, "count": state.count}
        args = ocp.args.Composite(state=ocp.args.StandardSave(learned), place=ocp.args.JsonSave(place))
        try:
            manager.save(int(state.count), args=args)
        except OSError as error:
            raise CheckpointError(f"cannot be written: {error}", file=Path(self.directory) / CHECKPOINTS) from error

    def _resumed(self, manager: Any, state: State, data: Any, marks: Mapping[str, Any]) -> State:
        """Returns the state of the last checkpoint, or the given one, and moves `data` to the same position."""
        ocp = needed("orbax.checkpoint")
        last = manager.latest_step()
        if last is None:
            return state
        place = manager.restore(last, args=ocp.args.Composite(place=ocp.args.JsonRestore())).place
        other = [
            f"{name} was {place['marks'].get(name)!r}, is {marks.get(name)!r}"
            for name in marks.keys() | place["marks"].keys()
            if marks.get(name) != place["marks"].get(name)
        ]
        if other:
            raise ArgumentError(
                f"holds another training:{listed(sorted(other))}",
                file=self.directory,
                hint="use another directory, or the same settings",
            )
        shapes = without_arrays(state)
        wanted = {"trained": shapes.trained, "moments": shapes.moments, "count": shapes.count}
        restored = manager.restore(last, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted))).state
        data.set_state(place["data"])
        return replace(state, **restored)


def _sums(tree: Any) -> list[int]:
    """Returns a number for each array that depends on each of its bits, but not on how the array is split."""
    return [int(_sum_of_bits(leaf)) for leaf in jax.tree.leaves(tree)]


@jax.jit
def _sum_of_bits(array: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(array, f"uint{min(8 * array.dtype.itemsize, 32)}")
    place = jnp.zeros(bits.shape, jnp.uint32)  # index among all elements; a reshape would gather split arrays
    for dim, size in enumerate(bits.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, dim)
    return jnp.sum(bits.astype(jnp.uint32) * (2 * place + 1), dtype=jnp.uint32)


@contextmanager
def _manager(folder: Path, settings: Settings) -> Iterator[Any]:
    ocp = needed("orbax.checkpoint")
    logging.getLogger("absl").setLevel(logging.WARNING)  # orbax logs every file
    options = ocp.CheckpointManagerOptions(
        max_to_keep=settings.keep,
        create=True,
        # a save in the background would read arrays that the next step, by donation, overwrites
        enable_async_checkpointing=False,
    )
    try:
        manager = ocp.CheckpointManager((folder / CHECKPOINTS).absolute(), options=options)
    except OSError as error:
        raise CheckpointError(f"cannot be written: {error}", file=folder) from error
    try:
        yield manager
    finally:
        manager.close()


@contextmanager
def _log(folder: Path, start: int) -> Iterator[Any]:
    """Opens losses.jsonl with the lines of steps up to `start`: steps after a killed run's checkpoint are redone."""
    if jax.process_index() != 0:
        yield None
        return
    kept = [line for line in read_losses(folder) if line["step"] <= start]
    with (folder / LOSSES).open("w") as log:
        log.writelines(json.dumps(line) + "\n" for line in kept)
        log.flush()
        yield log


def read_losses(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of losses.jsonl, if it exists, without broken lines that a killed run may leave."""
    file = folder / LOSSES
    lines: list[Any] = []
    for line in file.read_bytes().splitlines() if file.is_file() else []:
        with suppress(ValueError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict) and _is_logged(line.get("step"), line.get("loss"))]


def _is_logged(step: Any, loss: Any) -> bool:
    return isinstance(step, int) and isinstance(loss, float)


def _tell(log: Any, shown: ADVANCE, count: int, metrics: Metrics) -> None:
    loss, norm, tokens = (float(value) for value in (metrics.loss, metrics.grad_norm, metrics.tokens))
    if log is not None:
        log.write(json.dumps({"step": count, "loss": loss, "grad_norm": norm, "tokens": int(tokens)}) + "\n")
        log.flush()
    shown(count, loss)
    if not np.isfinite([loss, norm]).all():
        hint = "lower the learning rate; the checkpoints before are still there"
        raise EasyDeLError(f"the loss of step {count} is {loss}, and the norm of its gradients {norm}", hint=hint)


@contextmanager
def _bar(steps: int, start: int, shown: bool | None) -> Iterator[ADVANCE]:
    if not (sys.stderr.isatty() if shown is None else shown):
        yield lambda count, loss: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("Training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=steps, completed=start, loss="-")
        yield lambda count, loss: bar.update(task, completed=count, loss=f"{loss:.4f}")
