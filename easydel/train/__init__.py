"""Training: the loss, a pure step with donated state, and a small trainer that can be killed at any time."""

from easydel.train.average import averaged
from easydel.train.data import batches, packed
from easydel.train.evaluate import Evaluation, evaluator
from easydel.train.examples import encoded, held_out
from easydel.train.loss import LossSums, causal_loss, loss_sums
from easydel.train.optimizer import Optimization, Schedule, adamw
from easydel.train.pairs import Pairs
from easydel.train.reading import documents
from easydel.train.rows import Rows, in_rows, measured
from easydel.train.settings import Settings
from easydel.train.state import State, init_state
from easydel.train.steps import Metrics, Step, step
from easydel.train.summed import IGNORED
from easydel.train.trainer import Trainer

__all__ = [
    "IGNORED",
    "Evaluation",
    "LossSums",
    "Metrics",
    "Optimization",
    "Pairs",
    "Rows",
    "Schedule",
    "Settings",
    "State",
    "Step",
    "Trainer",
    "adamw",
    "averaged",
    "batches",
    "causal_loss",
    "documents",
    "encoded",
    "evaluator",
    "held_out",
    "in_rows",
    "init_state",
    "loss_sums",
    "measured",
    "packed",
    "step",
]
