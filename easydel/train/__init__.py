"""Training: the loss, a pure step with donated state, and a small trainer that can be killed at any time."""

from easydel.train.loss import IGNORED, Loss, causal_loss
from easydel.train.step import Metrics, State, Step, init_state, step

__all__ = ["IGNORED", "Loss", "Metrics", "State", "Step", "causal_loss", "init_state", "step"]
