"""The loss of examples that are not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from easydel.inputs import check_tokens
from easydel.module import LanguageModel
from easydel.train.loss import LossSums, loss_sums
from easydel.train.pairs import Pairs
from easydel.train.rows import Rows, check_source
from easydel.train.steps import check_count, placed
from easydel.train.summed import IGNORED


@dataclass(frozen=True)
class Evaluation:
    """The mean `loss` of predicted `tokens`, in nats."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """e to the loss: as uncertain as a choice among so many equally likely tokens."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


def evaluator(model: LanguageModel, rows: Rows | Pairs, batch: int = 8) -> Callable[[Mapping[str, Any]], Evaluation]:
    """Returns a function from parameters to the loss of all `rows`, `batch` of them at a time; it compiles once."""
    check_source(model, rows)
    check_count("batch", batch)
    check_tokens("input_ids", rows.input_ids, model.record.vocab_of("input_ids"))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model.params)
    sums = jax.jit(partial(loss_sums, model.bound(shapes)))

    def evaluate(params: Mapping[str, Any]) -> Evaluation:
        found: list[LossSums] = []
        for part in _parts(rows, batch):
            found.append(sums(params, {name: placed(array, model.policy) for name, array in part.items()}))
        # on the host, in float64: many parts may add up
        nll = math.fsum(float(part.nll) for part in found)
        tokens = sum(int(part.tokens) for part in found)
        return Evaluation(nll / max(tokens, 1), tokens)

    return evaluate


def _parts(rows: Rows | Pairs, batch: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields `batch` rows at a time; the last part is filled up with rows that have no labels."""
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        missing = batch - len(part["input_ids"])
        fill = {"labels": IGNORED}
        yield {
            name: np.pad(array, ((0, missing), (0, 0)), constant_values=fill.get(name, 0))
            for name, array in part.items()
        }
