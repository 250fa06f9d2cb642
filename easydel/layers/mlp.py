"""Dense feed-forward layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from easydel.layers.activations import activation
from easydel.layers.context import Context
from easydel.layers.linear import Linear
from easydel.layers.norm import AnyNorm
from easydel.layers.part import Part
from easydel.policy import MLP_HIDDEN, Policy


@dataclass(frozen=True)
class GLU(Part):
    """down(act(gate(x)) * up(x)) with `hidden` features between (Shazeer 2020, arXiv:2002.05202).

    `norm` acts on those features, before `down`.
    """

    inner: ClassVar[tuple[str, ...]] = ("gate_proj", "up_proj")
    hidden: int
    act: str
    bias: bool = False
    norm: AnyNorm | None = None

    def __post_init__(self):
        activation(self.act)  # refuses unknown names before a model is built

    def build(self, features: int, policy: Policy) -> MLPLayer:
        return MLPLayer(self, features, policy)

    def combine(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        """Returns the input of `down`, from the outputs of the projections in `inner`."""
        gate, up = saved(gate), saved(up)
        return activation(self.act)(gate) * up


@dataclass(frozen=True)
class LimitedGLU(GLU):
    """A GLU with limits before the activation: on `gate` from above, on `up` on both sides (DeepSeek-V4)."""

    limit: float = 10.0

    def combine(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        gate, up = saved(gate), saved(up)
        return activation(self.act)(jnp.minimum(gate, self.limit)) * jnp.clip(up, -self.limit, self.limit)


@dataclass(frozen=True)
class MLP(Part):
    """down(act(up(x))) with `hidden` features between; `norm` as in `GLU`."""

    inner: ClassVar[tuple[str, ...]] = ("up_proj",)
    hidden: int
    act: str
    bias: bool = True
    norm: AnyNorm | None = None

    def __post_init__(self):
        activation(self.act)

    def build(self, features: int, policy: Policy) -> MLPLayer:
        return MLPLayer(self, features, policy)

    def combine(self, up: jax.Array) -> jax.Array:
        """Returns the input of `down`, from the output of `up`."""
        return activation(self.act)(saved(up))


class MLPLayer(nnx.Module):
    """The projections that the record lists, and the projection back to the model's features."""

    def __init__(self, record: GLU | MLP, features: int, policy: Policy):
        for name in record.inner:
            setattr(self, name, Linear(features, record.hidden, policy, bias=record.bias))
        self.norm = None if record.norm is None else record.norm.build(record.hidden, policy)
        self.down_proj = Linear(record.hidden, features, policy, bias=record.bias)
        self.record = record

    def __call__(self, x: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        hidden = self.record.combine(*(getattr(self, name)(x) for name in self.record.inner))
        return self.down_proj(hidden if self.norm is None else self.norm(hidden)), cache


def saved(x: jax.Array) -> jax.Array:
    """Returns `x` under the name by which remat policies choose what to keep."""
    return checkpoint_name(x, MLP_HIDDEN)
