"""Optimizers of optax by name, with the schedule of their learning rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import jax

from easydel.errors import ArgumentError
from easydel.train.average import averaging
from easydel.train.reading import needed

DECAYED = ("kernel", "embedding", "lora_A", "lora_B")
LAST = 0.1  # of the peak, as in GPT-3 (Brown et al. 2020, arXiv:2005.14165) and Llama
FALL = 0.2  # of the steps, as in MiniCPM (Hu et al. 2024, arXiv:2404.06395), which made the schedule known
BETAS = {"adamw": (0.9, 0.95), "lion": (0.9, 0.99), "muon": (0.9, 0.95)}  # GPT-3's, Lion's authors', GPT-3's for Adam

Name = Literal["adamw", "lion", "adafactor", "muon"]
Shape = Literal["constant", "linear", "cosine", "wsd"]
Rate = Callable[[Any], Any]


@dataclass(frozen=True)
class Schedule:
    """The learning rate at each step: it rises to `peak` in `warmup` steps, then goes on in a `shape`.

    "constant" stays there; "linear" and "cosine" fall until the last step to the share `last` of the peak; "wsd"
    (warmup, stable, decay) falls in a line within the share `fall` of the steps that is left at the end.
    """

    peak: float
    shape: Shape = "cosine"
    warmup: int = 0
    last: float = LAST
    fall: float = FALL

    def __post_init__(self) -> None:
        if not self.peak > 0:
            raise ArgumentError(f"a learning rate of {self.peak} is not positive")
        if self.shape not in get_args(Shape):
            raise ArgumentError(f"there is no schedule {self.shape!r}", hint=f"use {', '.join(get_args(Shape))}")
        if isinstance(self.warmup, bool) or not isinstance(self.warmup, int) or self.warmup < 0:
            raise ArgumentError(f"warmup={self.warmup!r}, expected a number of steps")
        if not (0 <= self.last <= 1 and 0 < self.fall <= 1):
            raise ArgumentError(f"last={self.last} and fall={self.fall} are shares: expected 0 to 1")

    def over(self, steps: int) -> Rate:
        """Returns the function from the number of steps so far to the rate, for a training of `steps` steps."""
        optax = needed("optax")
        rest = max(steps - self.warmup, 1)
        if self.shape == "constant":
            main = optax.constant_schedule(self.peak)
        elif self.shape == "cosine":
            main = optax.cosine_decay_schedule(self.peak, rest, self.last)
        else:
            falling = rest if self.shape == "linear" else max(round(self.fall * steps), 1)
            main = optax.linear_schedule(self.peak, self.last * self.peak, falling, max(rest - falling, 0))
        if not self.warmup:
            return main
        return optax.join_schedules([optax.linear_schedule(0.0, self.peak, self.warmup), main], [self.warmup])


@dataclass(frozen=True)
class Optimization:
    """An optimizer by name, made for a number of steps by `build`. Norms and biases do not decay; with Muon, only what
    it makes orthogonal does.

    `betas` are those of AdamW and Lion, and of the Adam that Muon leaves norms, biases, embeddings and the head to
    (default: 0.9 and 0.95, for Lion 0.9 and 0.99); Adafactor has none. Muon's own updates are scaled to the size of
    AdamW's (Liu et al. 2025, arXiv:2502.16982), so that they go with the same rates. With `average`, the parameters'
    exponential moving average is kept beside them: each step moves it by 1 - `average`.
    """

    schedule: Schedule
    name: Name = "adamw"
    weight_decay: float = 0.0
    betas: tuple[float, float] | None = None
    average: float | None = None

    def __post_init__(self) -> None:
        if self.name not in get_args(Name):
            raise ArgumentError(f"there is no optimizer {self.name!r}", hint=f"use {', '.join(get_args(Name))}")
        if self.betas is not None and self.name not in BETAS:
            raise ArgumentError(f"{self.name} has no betas")
        if self.betas is not None and not (len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)):
            raise ArgumentError(f"betas={self.betas}, expected two numbers from 0 to below 1")
        if self.weight_decay < 0:
            raise ArgumentError(f"weight_decay={self.weight_decay} is negative")
        if self.average is not None and not 0 < self.average < 1:
            raise ArgumentError(f"an average that keeps {self.average} of itself in each step", hint="try 0.999")

    def marks(self) -> dict[str, Any]:
        """Returns all choices by name."""
        own = asdict(self)
        rate = own.pop("schedule")
        rate |= {"learning_rate": rate.pop("peak"), "schedule": rate.pop("shape"), "min_rate": rate.pop("last")}
        return {"optimizer": own.pop("name"), **own, **rate}

    def build(self, steps: int) -> Any:
        """Returns the optimizer for a training of `steps` steps: an optax.GradientTransformation."""
        made = MAKERS[self.name](self, self.schedule.over(steps))
        return made if self.average is None else averaging(made, self.average)


def adamw(peak: float, steps: int, *, warmup: int = 0, weight_decay: float = 0.0) -> Any:
    """Returns AdamW (betas 0.9 and 0.95, as in GPT-3).

    The rate rises to `peak` in `warmup` steps, then falls to a tenth as a cosine until `steps`. Norms and biases do not
    decay.
    """
    return Optimization(Schedule(peak, warmup=warmup), weight_decay=weight_decay).build(steps)


def _adamw(choice: Optimization, rate: Rate) -> Any:
    b1, b2 = choice.betas or BETAS["adamw"]
    return needed("optax").adamw(rate, b1=b1, b2=b2, weight_decay=choice.weight_decay, mask=_decays)


def _lion(choice: Optimization, rate: Rate) -> Any:
    b1, b2 = choice.betas or BETAS["lion"]
    return needed("optax").lion(rate, b1=b1, b2=b2, weight_decay=choice.weight_decay, mask=_decays)


def _adafactor(choice: Optimization, rate: Rate) -> Any:
    # optax's own decay is not scaled by the rate, unlike all others'
    decay = (lambda count: choice.weight_decay * rate(count)) if choice.weight_decay else None
    return needed("optax").adafactor(rate, weight_decay_rate=decay, weight_decay_mask=_decays)


def _muon(choice: Optimization, rate: Rate) -> Any:
    b1, b2 = choice.betas or BETAS["muon"]
    return needed("optax").contrib.muon(
        rate,
        weight_decay=choice.weight_decay,
        weight_decay_mask=_decays,
        adam_b1=b1,
        adam_b2=b2,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=0.2,
    )


MAKERS: dict[str, Callable[[Optimization, Rate], Any]] = {
    "adamw": _adamw,
    "lion": _lion,
    "adafactor": _adafactor,
    "muon": _muon,
}


def _decays(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)


def _matrices(params: Any) -> Any:
    """Returns the axes of each matrix that Muon makes orthogonal: the last two; others count layers and experts."""
    axes = needed("optax.contrib").MuonDimensionNumbers

    def of(path: Any, leaf: Any) -> Any:
        names = [part.key for part in path]
        inner = names[-1] in ("kernel", "lora_A", "lora_B") and "lm_head" not in names and leaf.ndim >= 2
        return axes(leaf.ndim - 1, leaf.ndim - 2) if inner else None

    return jax.tree_util.tree_map_with_path(of, params)
