"""Training: the loss, a pure step with donated state, and a small trainer that can be killed at any time."""

from easydel.train.data import batches, documents, packed
from easydel.train.loss import LossSums, causal_loss, loss_sums
from easydel.train.optimizer import adamw
from easydel.train.state import State, init_state
from easydel.train.steps import Metrics, Step, step
from easydel.train.summed import IGNORED
from easydel.train.trainer import Settings, Trainer

__all__ = [
    "IGNORED",
    "LossSums",
    "Metrics",
    "Settings",
    "State",
    "Step",
    "Trainer",
    "adamw",
    "batches",
    "causal_loss",
    "documents",
    "init_state",
    "loss_sums",
    "packed",
    "step",
]
