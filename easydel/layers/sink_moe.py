"""Experts whose shared ones take part in the routed ones' softmax (Thinking Machines Lab 2026, Inkling)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.layers.context import Context
from easydel.layers.experts import Experts
from easydel.layers.linear import buffer, contract, parameter
from easydel.layers.mlp import GLU
from easydel.layers.moe import Router
from easydel.layers.part import Part
from easydel.policy import Policy
from easydel.tree import split_of

# B batch, T length, D model, E experts and shared ones, K chosen experts of a token, S shared ones


@dataclass(frozen=True)
class SinkTopK(Router):
    """The `k` experts with the highest sigmoids, and the `shared` ones, which every token uses.

    Weights are their sigmoids over the sum of these, times `scale` and a learned number. A learned bias per expert
    counts in the choice but not in the weights.
    """

    k: int
    shared: int
    scale: float

    def build(self, experts: int, features: int, policy: Policy) -> SinkGate:
        return SinkGate(self, experts, features, policy)


class SinkGate(nnx.Module):
    def __init__(self, router: SinkTopK, experts: int, features: int, policy: Policy):
        self.kernel = parameter((experts + router.shared, features), policy)
        self.output_gain = parameter((1,), policy)
        self.correction_bias = buffer((experts,), jnp.float32)
        self.router, self.policy = router, replace(policy, dtype=jnp.dtype(jnp.float32))

    def __call__(self, x_BTD: jax.Array, context: Context) -> tuple[jax.Array, jax.Array]:
        """Returns weights [B, T, K + S] of the chosen experts and of the shared ones, and the chosen ones [B, T, K]."""
        scores_BTE = jax.nn.sigmoid(contract(x_BTD, self.kernel[...], self.policy, split_of(self.kernel)))
        routed_BTE, shared_BTS = jnp.split(scores_BTE, [self.correction_bias.shape[0]], axis=-1)
        _, chosen_BTK = jax.lax.top_k(routed_BTE + self.correction_bias[...], self.router.k)
        scores = jnp.concatenate([jnp.take_along_axis(routed_BTE, chosen_BTK, axis=-1), shared_BTS], axis=-1)
        weights = scores / jnp.sum(scores, axis=-1, keepdims=True)
        return weights * (self.router.scale * self.output_gain[...].astype(jnp.float32)), chosen_BTK


@dataclass(frozen=True)
class SinkMoE(Part):
    """`experts` copies of `expert`, among which `router` chooses, and its shared ones, of the same size."""

    experts: int
    expert: GLU
    router: SinkTopK

    def build(self, features: int, policy: Policy) -> SinkMoELayer:
        return SinkMoELayer(self, features, policy)


class SinkMoELayer(nnx.Module):
    def __init__(self, record: SinkMoE, features: int, policy: Policy):
        router = record.router
        self.gate = router.build(record.experts, features, policy)
        self.experts = Experts(record.experts, record.expert, features, policy)
        self.shared = nnx.Dict(experts=Experts(router.shared, record.expert, features, policy))
        self.record = record

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        router = self.record.router
        weights, chosen_BTK = self.gate(x_BTD, context)
        routed_BTD = self.experts(x_BTD, weights[..., : router.k], chosen_BTK)
        every_BTS = jnp.broadcast_to(jnp.arange(router.shared), (*x_BTD.shape[:2], router.shared))
        return routed_BTD + self.shared["experts"](x_BTD, weights[..., router.k :], every_BTS), cache
