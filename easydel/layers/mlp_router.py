"""A router that is a small MLP, fed by the router before it (Zyphra 2025, arXiv:2511.17127)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.layers.activations import activation
from easydel.layers.context import Context
from easydel.layers.linear import Float32Linear, buffer, parameter
from easydel.layers.moe import Router
from easydel.layers.norm import RMSNorm
from easydel.layers.part import Handed
from easydel.policy import Policy

# B batch, T length, D model, H hidden features of the router, E experts and one more
STATE = "router_state"


@dataclass(frozen=True)
class MLPRouter(Router):
    """One expert for each token, or none, by an MLP of `hidden` features over a projection of the input.

    A router that `follows` another adds that one's projection to its own, times a learned scale. A class beyond the
    experts stands for none. A bias per class counts in the choice, but not in the weight.
    """

    hidden: int
    norm: RMSNorm
    follows: bool
    act: str = "gelu"

    def build(self, experts: int, features: int, policy: Policy) -> MLPGate:
        return MLPGate(self, experts, features, policy)

    def hands_on(self) -> Iterable[str]:
        yield STATE


class MLPGate(nnx.Module):
    def __init__(self, router: MLPRouter, experts: int, features: int, policy: Policy):
        hidden = router.hidden
        self.down_proj = Float32Linear(features, hidden, policy, bias=True)
        self.state_gain = parameter((hidden,), policy) if router.follows else None
        self.norm = router.norm.build(hidden, policy)
        self.fc1 = Float32Linear(hidden, hidden, policy, bias=True)
        self.fc2 = Float32Linear(hidden, hidden, policy, bias=True)
        self.out_proj = Float32Linear(hidden, experts + 1, policy)
        self.correction_bias = buffer((experts + 1,), jnp.float32)
        self.act = activation(router.act)

    def __call__(self, x_BTD: jax.Array, context: Context) -> Handed:
        """Returns weights and indices [B, T, 1], with this router's projection for the next."""
        state_BTH = self.down_proj(x_BTD)
        if self.state_gain is not None:
            state_BTH = state_BTH + context.handed[STATE] * self.state_gain[...].astype(jnp.float32)
        hidden_BTH = self.act(self.fc2(self.act(self.fc1(self.norm(state_BTH)))))
        scores_BTE = jax.nn.softmax(self.out_proj(hidden_BTH))
        chosen_BT1 = jnp.argmax(scores_BTE + self.correction_bias[...], axis=-1, keepdims=True)
        return Handed((jnp.take_along_axis(scores_BTE, chosen_BT1, axis=-1), chosen_BT1), {STATE: state_BTH})
