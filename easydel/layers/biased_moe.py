"""A mixture of experts with a bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from easydel.layers.context import Context
from easydel.layers.linear import parameter
from easydel.layers.moe import MoE, MoELayer
from easydel.layers.part import Handed, handing, received
from easydel.policy import Policy


@dataclass(frozen=True)
class BiasedMoE(MoE):
    """Experts, to whose sum a bias is added."""

    def build(self, features: int, policy: Policy) -> BiasedMoELayer:
        return BiasedMoELayer(self, features, policy)


class BiasedMoELayer(MoELayer):
    def __init__(self, record: BiasedMoE, features: int, policy: Policy):
        super().__init__(record, features, policy)
        self.bias = parameter((features,), policy)

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array | Handed, Any]:
        result, cache = super().__call__(x_BTD, context, cache)
        y_BTD, values = received(result)
        return handing(y_BTD + self.bias[...].astype(y_BTD.dtype), values), cache
