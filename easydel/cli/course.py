"""The options of a training as records: its length and batches, its optimizer, its evaluations and logs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from easydel.errors import ArgumentError

if TYPE_CHECKING:
    from easydel.train import Optimization, Settings

STEPS = 100


def _option(panel: str, help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


def _train(help: str, *names: str, **more: Any) -> Any:
    return _option("Training", help, *names, **more)


def _optimize(help: str, *names: str, **more: Any) -> Any:
    return _option("Optimizer", help, *names, **more)


def _watch(help: str, *names: str, **more: Any) -> Any:
    return _option("Evaluation and logs", help, *names, **more)


@dataclass(frozen=True)
class Course:
    """The length of a training, and its batches."""

    steps: Annotated[int | None, _train(f"Number of steps. Default: {STEPS}, or as many as --epochs take.")] = None
    epochs: Annotated[float | None, _train("Go through all data this often.")] = None
    batch: Annotated[int, _train("Sequences in a step.")] = 8
    length: Annotated[int, _train("Tokens in a sequence.")] = 512
    accumulate: Annotated[int, _train("Compute a step in this many parts, one after the other: saves memory.")] = 1
    clip: Annotated[float, _train("Largest norm of all gradients together.")] = 1.0
    z_loss: Annotated[float, _train("Weight of the squared log of the softmax's denominator.")] = 0.0
    seed: Annotated[int, _train("Seed of the order of the data, and of new adapters.", min=0)] = 0
    save_every: Annotated[int, _train("Steps between checkpoints.")] = 100
    separate_documents: Annotated[
        bool, _train("Tokens of a text see their own document only; chats are always apart.", "--separate-documents")
    ] = False
    no_packing: Annotated[bool, _train("One example in each sequence, and padding.", "--no-packing")] = False
    remat: Annotated[
        str | None,
        _train('Recompute in the backward pass: "everything", or less, as "save_attention_and_mlp": docs/training.md.'),
    ] = None

    def settings(self, watch: Watch) -> Settings:
        from easydel.train import Settings

        if not self.clip > 0:
            raise ArgumentError(f"--clip {self.clip} is not positive")
        if self.z_loss < 0:
            raise ArgumentError("--z-loss must not be negative")
        return Settings(
            steps=STEPS if self.steps is None and self.epochs is None else self.steps,
            epochs=self.epochs,
            batch=self.batch,
            length=self.length,
            accumulate=self.accumulate,
            clip=self.clip,
            z_weight=self.z_loss,
            seed=self.seed,
            save_every=self.save_every,
            packing=False if self.no_packing else None,
            eval_every=watch.eval_every,
            patience=watch.patience,
            log=tuple(watch.log.split(",")) if watch.log else (),
        )


@dataclass(frozen=True)
class Rates:
    """The optimizer, and its learning rate."""

    learning_rate: Annotated[float, _optimize("Peak of the learning rate.")] = 1e-5
    schedule: Annotated[
        str, _optimize("The rate after the peak: constant, linear, cosine, or wsd (falls in the last fifth).")
    ] = "cosine"
    warmup: Annotated[int, _optimize("Steps in which the learning rate rises from 0.")] = 0
    min_rate: Annotated[float, _optimize("The share of the peak that the rate falls to.")] = 0.1
    optimizer: Annotated[str, _optimize("adamw, lion, adafactor, or muon.")] = "adamw"
    betas: Annotated[str | None, _optimize('Of AdamW and Lion, as "0.9,0.95".')] = None
    weight_decay: Annotated[float, _optimize("Decay of kernels and embeddings.")] = 0.0
    ema: Annotated[
        float | None, _optimize("Keep an average of the parameters that keeps this share in each step, and write that.")
    ] = None

    def optimization(self) -> Optimization:
        from easydel.train import Optimization, Schedule

        if not self.learning_rate > 0:
            raise ArgumentError(f"--learning-rate {self.learning_rate} is not positive")
        schedule: Any = Schedule(self.learning_rate, self.schedule, self.warmup, self.min_rate)  # type: ignore[arg-type]
        return Optimization(schedule, self.optimizer, self.weight_decay, self._betas(), self.ema)  # type: ignore[arg-type]

    def _betas(self) -> tuple[float, float] | None:
        if self.betas is None:
            return None
        try:
            first, second = map(float, self.betas.split(","))
        except ValueError:
            raise ArgumentError(f"--betas {self.betas!r} are no two numbers", hint="write them as 0.9,0.95") from None
        return first, second


@dataclass(frozen=True)
class Watch:
    """The evaluation of examples that are not trained on, and further logs."""

    eval_split: Annotated[float | None, _watch("Hold this share of the data out, as 0.05, and evaluate it.")] = None
    eval_file: Annotated[Path | None, _watch("Evaluate the examples of this file.")] = None
    eval_every: Annotated[
        int | None, _watch("Steps between evaluations. Default: each time around the data. The last step is one.")
    ] = None
    patience: Annotated[
        int | None, _watch("End after this many evaluations that got no better, and write the model of the best one.")
    ] = None
    log: Annotated[str | None, _watch("Log to these too: tensorboard, wandb, or both with a comma.")] = None

    def __post_init__(self) -> None:
        if self.eval_split is not None and self.eval_file is not None:
            raise ArgumentError("--eval-split and --eval-file exclude each other")
        given = {"--eval-every": self.eval_every, "--patience": self.patience}
        idle = [name for name, value in given.items() if value is not None]
        if idle and self.eval_split is None and self.eval_file is None:
            raise ArgumentError(f"{' and '.join(idle)} without --eval-split or --eval-file")
