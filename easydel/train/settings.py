"""The settings of a training: its length, its batches, how often it is saved and evaluated, and where it is logged."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from easydel.errors import ArgumentError
from easydel.train.logs import check_logs
from easydel.train.steps import check_count

# What may differ in a resumed run, or, as packing, shows in the data.
FREE = ("steps", "epochs", "save_every", "keep", "eval_every", "patience", "log", "packing")


@dataclass(frozen=True)
class Settings:
    """Length and data of a training: `batch` sequences of `length` tokens in each of `steps` steps, or as many steps as
    `epochs` times all data take.

    Every `save_every` steps a checkpoint is made, and the last `keep` are kept. See `step` for `accumulate`, `clip` and
    `z_weight`. `seed` determines the data's order. `document_end` is the token that ends documents of a text: with it,
    tokens see their own document only, and the first token of a document is not predicted. `packing` puts several
    examples into a row, as segments that do not see each other; None does so if the model can. Every `eval_every` steps
    (default: each time around the data), and at the end, the held-out examples are evaluated if there are any; after
    `patience` evaluations without a lower loss the training ends, and however it ends, the model is that of the
    lowest. `log` names further places for the log, of "tensorboard" and "wandb".
    """

    steps: int | None = None
    batch: int = 8
    length: int = 512
    accumulate: int = 1
    clip: float | None = 1.0
    z_weight: float = 0.0
    seed: int = 0
    save_every: int = 100
    keep: int = 2
    document_end: int | None = None
    epochs: float | None = None
    packing: bool | None = None
    eval_every: int | None = None
    patience: int | None = None
    log: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ArgumentError(f"steps={self.steps} and epochs={self.epochs}", hint="give one of them")
        for name in ("steps", "batch", "length", "accumulate", "save_every", "keep", "eval_every", "patience"):
            if (value := getattr(self, name)) is not None or name not in ("steps", "eval_every", "patience"):
                check_count(name, value)
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise ArgumentError(f"epochs={self.epochs}, expected more than 0")
        if self.length < 2:
            raise ArgumentError(f"length={self.length}, expected at least 2: the first token is never predicted")
        if self.batch % self.accumulate:
            raise ArgumentError(f"batch={self.batch} cannot be cut into accumulate={self.accumulate} equal parts")
        check_logs(self.log)

    def steps_over(self, rows: int) -> int:
        """Returns the number of steps, for data of so many rows."""
        return self.steps if self.epochs is None else max(1, math.ceil(self.epochs * rows / self.batch))  # type: ignore[return-value]

    def evaluation_steps(self, rows: int) -> int:
        """Returns the number of steps between evaluations."""
        return self.eval_every or max(1, math.ceil(rows / self.batch))

    def same(self) -> dict[str, Any]:
        """The settings that must be equal in a resumed run."""
        return {key: value for key, value in asdict(self).items() if key not in FREE}
