"""A small trainer: batches, steps, evaluations, checkpoints. Stopped at any moment, it continues where it was.

A checkpoint holds the trained parameters, the optimizer's state, the number of steps, and the position in the data. So
the losses after a resume are, bit for bit, those of a run that was never stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import jax

from easydel.errors import ArgumentError
from easydel.lora.places import adapted_places, record_of
from easydel.module import LanguageModel
from easydel.processes import agree, losses_told
from easydel.tokenizer import Tokenizer
from easydel.train.checkpoints import checkpoints, marked
from easydel.train.data import Pieces, shuffled
from easydel.train.evaluate import evaluator
from easydel.train.examples import encoded
from easydel.train.logs import opened, read_log
from easydel.train.optimizer import Optimization
from easydel.train.pairs import Pairs
from easydel.train.rows import Source, arranged, check_source, measured, takes_segments
from easydel.train.run import Held, Run
from easydel.train.settings import Settings
from easydel.train.state import Optimizer, State, init_state
from easydel.train.steps import step
from easydel.tree import bind


@dataclass(frozen=True)
class Trainer:
    """Trains `model` on `examples`: all that `encoded` takes, such as token ids, or a list of chats with a `tokenizer`.

    `directory` gets checkpoints, and a losses.jsonl with a line for each step, and for each evaluation of the examples
    in `evaluation`. If it has checkpoints already, `run` continues from the last. It refuses where that cannot give the
    same losses: other data, other settings (all but the number of steps, and how often it is saved, evaluated and
    logged), parameters of other shapes, other values of frozen parameters, other adapters, or another `identity`
    (further values that must be equal, such as the learning rate, which an optimizer of optax does not reveal). With
    more steps than planned, it goes on; an `Optimization` then has the rates of the longer training.
    """

    model: LanguageModel
    params: Mapping[str, Any]
    optimizer: Optimizer | Optimization
    examples: Any
    directory: str | PathLike[str]
    settings: Settings
    trainable: Callable[[str], bool] | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    evaluation: Any = None

    @cached_property
    def source(self) -> Source:
        """The rows that batches are made of."""
        examples = self.examples if isinstance(self.examples, Source) else encoded(self.examples, self.tokenizer)
        return self._checked(arranged(examples, **self._layout(examples)))

    @property
    def steps(self) -> int:
        """The number of steps of the whole training."""
        return self.settings.steps_over(len(self.source))

    def run(self, *, progress: bool | None = None) -> State:
        """Returns the state after the last step; the model gets its parameters, or their averages if these are kept.

        With `patience` in the settings, the model gets those of the evaluation with the lowest loss.
        `progress` None shows a bar on stderr if that is a terminal, else lines; False shows nothing. Ctrl-C ends the
        step that runs, saves a checkpoint, and raises KeyboardInterrupt. Raises ArgumentError for a training that
        cannot be started or resumed, EasyDeLError if the loss is no longer a number.
        """
        settings, folder, steps = self.settings, Path(self.directory), self.steps
        held = self._held()
        data = shuffled(self.source, settings.batch, settings.seed)
        optimizer, rate = self._optimizer(steps)
        state = init_state(self.model, self.params, optimizer, trainable=self.trainable)
        choices = {"accumulate": settings.accumulate, "clip": settings.clip, "z_weight": settings.z_weight}
        advance = step(self.model, optimizer, **choices)
        marks = marked(state, self.source, self._marks())  # once: a run does not change them
        agree("train", {**marks, "steps": steps})
        told = progress is not False and jax.process_index() == 0
        with checkpoints(folder, marks, steps=steps, keep=settings.keep, best=settings.patience is not None) as saved:
            state, planned = saved.resumed(state, data)
            start = int(state.count)
            if planned is not None and told:
                print(_going_on(start, steps, planned, scheduled=rate is not None), file=sys.stderr)
            run = Run(state, steps, settings, advance, data, saved, held, rate, told)
            try:
                with opened(folder, start, steps, settings.log, progress) as log:
                    if held is not None:
                        held.lines.extend(line for line in read_log(folder) if "eval_loss" in line)
                    with losses_told():
                        run.to_the_end(log)
            finally:
                bind(self.model, run.params)  # the first step consumed the parameters that the model had
            bind(self.model, run.result())
        return run.state

    def _optimizer(self, steps: int) -> tuple[Any, Any]:
        """Returns the optimizer, and the function of its learning rate if that is known."""
        if not isinstance(self.optimizer, Optimization):
            return self.optimizer, None
        return self.optimizer.build(steps), jax.jit(self.optimizer.schedule.over(steps))

    def _layout(self, examples: Any) -> dict[str, Any]:
        packing = self.settings.packing
        if packing is None:
            packing = not isinstance(examples, list) or takes_segments(self.model)
        return {"length": self.settings.length, "packing": packing, "document_end": self.settings.document_end}

    def _held(self) -> Held | None:
        if self.evaluation is None:
            given = {"eval_every": self.settings.eval_every, "patience": self.settings.patience}
            if idle := [f"{name}={value}" for name, value in given.items() if value is not None]:
                raise ArgumentError(f"{' and '.join(idle)} without examples for evaluation")
            return None
        known = isinstance(self.evaluation, Source)
        examples = self.evaluation if known else encoded(self.evaluation, self.tokenizer)
        rows = measured(examples, **self._layout(examples))
        return Held(evaluator(self.model, rows, self.settings.batch), self.settings.evaluation_steps(len(self.source)))

    def _checked(self, source: Source) -> Source:
        check_source(self.model, source)
        vocabulary, longest = self.model.record.vocab_of("input_ids"), self.model.record.longest
        tokens = source.tokens if isinstance(source, Pieces) else source.input_ids
        if tokens.size and (tokens.max() >= vocabulary or tokens.min() < 0):
            raise ArgumentError(f"tokens reach {tokens.max()}, and the model has {vocabulary}")
        if isinstance(source, Pairs):  # as long as the longest of them
            sides = {
                "inputs": (source.input_ids, self.model.record.longest_of("input_ids")),
                "targets": (source.labels, longest),
            }
            for name, (ids, rows) in sides.items():
                if rows is not None and ids.shape[1] > rows:
                    problem = f"{name} have up to {ids.shape[1]} tokens, and the model {rows} positions for them"
                    raise ArgumentError(problem, hint=f"length={rows} cuts them")
        elif longest is not None and self.settings.length > longest:
            raise ArgumentError(f"length={self.settings.length} is longer than the model's {longest} positions")
        return source

    def _marks(self) -> dict[str, Any]:
        """Returns the choices that determine the losses of a run."""
        own = self.optimizer.marks() if isinstance(self.optimizer, Optimization) else {}
        adapters = sorted({repr(record_of(place)) for place in adapted_places(self.model)})
        return {"adapters": adapters, **self.settings.same(), **own, **self.identity}


def _going_on(start: int, steps: int, planned: int, *, scheduled: bool) -> str:
    if start >= steps:
        return f"step {start} was reached before, and {steps} were asked for: there is nothing left to train"
    rates = "; the learning rate now has the schedule of that length" if scheduled else ""
    return f"going on from step {start} to {steps}" + (f", not {planned}{rates}" if planned != steps else "")
