"""Dense feed-forward layers."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from easydel.layers.activations import activation
from easydel.layers.linear import Linear
from easydel.policy import MLP_HIDDEN, Policy


@dataclass(frozen=True)
class GLU:
    """down(act(gate(x)) * up(x)) with `hidden` features between (Shazeer 2020, arXiv:2002.05202)."""

    hidden: int
    act: str
    bias: bool = False

    def __post_init__(self):
        activation(self.act)  # refuses unknown names before there is a model

    def build(self, features: int, policy: Policy) -> GLULayer:
        return GLULayer(self, features, policy)

    def combine(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        gate, up = self.saved(gate, up)
        return activation(self.act)(gate) * up

    def saved(self, gate: jax.Array, up: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The same, under the name by which remat policies find what to keep."""
        return checkpoint_name(gate, MLP_HIDDEN), checkpoint_name(up, MLP_HIDDEN)


@dataclass(frozen=True)
class MLP:
    """down(act(up(x))) with `hidden` features between."""

    hidden: int
    act: str
    bias: bool = True

    def build(self, features: int, policy: Policy) -> MLPLayer:
        return MLPLayer(self, features, policy)


class GLULayer(nnx.Module):
    def __init__(self, record: GLU, features: int, policy: Policy):
        self.gate_proj = Linear(features, record.hidden, policy, bias=record.bias)
        self.up_proj = Linear(features, record.hidden, policy, bias=record.bias)
        self.down_proj = Linear(record.hidden, features, policy, bias=record.bias)
        self.record = record

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down_proj(self.record.combine(self.gate_proj(x), self.up_proj(x)))


class MLPLayer(nnx.Module):
    def __init__(self, record: MLP, features: int, policy: Policy):
        self.up_proj = Linear(features, record.hidden, policy, bias=record.bias)
        self.down_proj = Linear(record.hidden, features, policy, bias=record.bias)
        self.act = activation(record.act)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down_proj(self.act(checkpoint_name(self.up_proj(x), MLP_HIDDEN)))
