"""One run of a training, from its state to the last step: steps, what is told of them, evaluations, checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from easydel.errors import EasyDeLError
from easydel.train.average import averaged
from easydel.train.checkpoints import Checkpoints
from easydel.train.evaluate import Evaluation
from easydel.train.logs import Clock, Line, Log
from easydel.train.settings import Settings
from easydel.train.state import State
from easydel.train.steps import Metrics, Step
from easydel.train.stopping import Interrupt, best, exhausted
from easydel.tree import Tree, flatten, unflatten


@dataclass(frozen=True)
class Held:
    """The evaluation of held-out examples, every so many steps, and the lines of those that were made."""

    evaluate: Callable[[Mapping[str, Any]], Evaluation]
    every: int
    lines: list[Line] = field(default_factory=list)


@dataclass
class Run:
    """A training under way: `state` is the newest, as each step overwrites the one before."""

    state: State
    steps: int
    settings: Settings
    advance: Step
    data: Any
    saved: Checkpoints
    held: Held | None
    rate: Callable[[Any], Any] | None
    told: bool
    clock: Clock = field(default_factory=Clock)

    @property
    def params(self) -> Tree:
        """All parameters; the trained ones as their averages, if these are kept."""
        return self._whole(self._trained)

    @property
    def _trained(self) -> Tree:
        return averaged(self.state.trained, self.state.moments)

    def _whole(self, trained: Tree) -> Tree:
        return unflatten(flatten(trained) | flatten(self.state.frozen))

    def result(self) -> Tree:
        """Returns the parameters of the best evaluation if the training has `patience`, else the newest."""
        found = None if self.held is None else best(self.held.lines)
        if found is None or self.settings.patience is None or found["step"] == int(self.state.count):
            return self.params
        kept = self.saved.kept_best(self._trained, found["step"])
        if kept is None:  # as in a training that got its patience when it was gone on with
            self._say(f"step {found['step']} was the best, and was not kept: the result is that of the last step")
            return self.params
        self._say(f"the result is that of step {found['step']}, whose evaluation was the best")
        return self._whole(kept)

    def to_the_end(self, log: Log) -> None:
        """Takes the steps that are left, or as many as Ctrl-C and evaluations allow: KeyboardInterrupt after Ctrl-C."""
        interrupt = Interrupt()
        waiting: Metrics | None = None  # reported one step late, so that the device never waits for us
        start = int(self.state.count)
        with interrupt.noticed():
            for count in range(start + 1, self.steps + 1):
                if self._stagnates():
                    break
                self.state, metrics = self.advance(self.state, next(self.data))
                if waiting is not None:
                    self._tell(log, count - 1, waiting)
                waiting = metrics
                ends = count == self.steps or bool(interrupt)
                evaluates = self.held is not None and (count % self.held.every == 0 or count == self.steps)
                if ends or evaluates or count % self.settings.save_every == 0:
                    self._tell(log, count, metrics)
                    waiting = None
                    self._pause(log, count, evaluates=evaluates, saves=ends or count % self.settings.save_every == 0)
                if ends:
                    break
        if interrupt:
            where = f"stopped after step {int(self.state.count)} of {self.steps}, which is saved"
            self._say(f"{where}: started again, the training goes on from there")
            raise KeyboardInterrupt

    def _tell(self, log: Log, count: int, metrics: Metrics) -> None:
        loss, norm, tokens = (float(value) for value in (metrics.loss, metrics.grad_norm, metrics.tokens))
        line: Line = {"step": count, "loss": loss, "grad_norm": norm, "tokens": int(tokens)}
        if self.rate is not None:
            line["learning_rate"] = float(self.rate(count - 1))
        log(line | self.clock.measured(self.settings.batch * self.settings.length))
        if not np.isfinite([loss, norm]).all():
            hint = "lower the learning rate; the checkpoints before are still there"
            raise EasyDeLError(f"the loss of step {count} is {loss}, and the norm of its gradients {norm}", hint=hint)

    def _pause(self, log: Log, count: int, *, evaluates: bool, saves: bool) -> None:
        if evaluates and self.held is not None:
            found = self.held.evaluate(self.params)
            line = {"step": count, "eval_loss": found.loss, "eval_perplexity": found.perplexity}
            log(line | {"eval_tokens": found.tokens})
            self.held.lines.append(line)
            if self.settings.patience is not None and best(self.held.lines) is line:
                self.saved.keep_best(self._trained, count)
            saves = saves or exhausted(self.held.lines, self.settings.patience)
        if saves:
            self.saved.save(self.state, self.data)
        self.clock.pause()

    def _stagnates(self) -> bool:
        """Whether evaluations get no better, so that the training ends. Says so."""
        if self.held is None or not exhausted(self.held.lines, self.settings.patience):
            return False
        found = best(self.held.lines)
        assert found is not None
        lowest = f"the lowest was {found['eval_loss']:.4f}, after step {found['step']}"
        self._say(f"the last {self.settings.patience} evaluations got no better, so the training ends: {lowest}")
        return True

    def _say(self, text: str) -> None:
        if self.told:
            print(text, file=sys.stderr)
