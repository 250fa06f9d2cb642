"""Mixtures of experts: a router chooses a few feed-forwards for each token (Shazeer et al. 2017, arXiv:1701.06538)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.errors import ConfigError
from easydel.layers.context import Context
from easydel.layers.experts import Experts
from easydel.layers.linear import Float32Linear, Linear, buffer, contract, parameter
from easydel.layers.mlp import GLU, MLP
from easydel.layers.part import Handed, Part, handing, received
from easydel.policy import Policy
from easydel.tree import split_of

# B batch, T length, D model, E experts, K chosen experts of a token


@dataclass(frozen=True)
class Groups:
    """`count` equal groups of experts, of which only the `kept` best can be chosen from.

    A group's score is the sum of its `best` highest scores (DeepSeek-V2, arXiv:2405.04434: 1; V3, arXiv:2412.19437: 2).
    Experts of other groups get the score `outside`.
    """

    count: int
    kept: int
    best: int = 1
    outside: float = -jnp.inf

    def limit(self, scores_BTE: jax.Array) -> jax.Array:
        """Returns the scores, with `outside` for experts of the other groups."""
        grouped = scores_BTE.reshape(*scores_BTE.shape[:-1], self.count, -1)
        worth = jnp.sum(jax.lax.top_k(grouped, self.best)[0], axis=-1)
        _, kept = jax.lax.top_k(worth, self.kept)
        keep = jnp.any(kept[..., None] == jnp.arange(self.count), axis=-2)
        return jnp.where(keep[..., None], grouped, self.outside).reshape(scores_BTE.shape)


class Router:
    """A record of the choice of experts.

    It builds a module of (x [B, T, D], context) that returns weights and indices of the chosen experts, [B, T, K] each,
    perhaps as `Handed`, with values for later layers.
    A weight of 0 leaves an expert out, as does an index beyond the experts; no token is left out unless a router says
    so.
    """

    def build(self, experts: int, features: int, policy: Policy) -> Any:
        """Returns the module, with parameters that have no values yet."""
        raise NotImplementedError(type(self).__name__)

    def check(self, experts: int) -> None:
        """Raises ConfigError if the router cannot choose among that many experts."""

    def reads(self) -> Iterable[str]:
        """Lists fields of the context that the router reads, as `Part.reads` does: hash routers read ids_BT."""
        return ()

    def hands_on(self) -> Iterable[str]:
        """Lists the names of the values that the router hands on, as `Part.hands_on` does."""
        return ()


@dataclass(frozen=True)
class TopK(Router):
    """The `k` experts with the highest scores, weighted by them.

    `renormalize` makes the weights sum to 1, then `scale` multiplies them. If `corrected`, a learned bias per expert
    counts in the choice but not in the weights (DeepSeek-V3); a `bias` is part of the scores (GPT-OSS). `floor` is
    added to the sum that `renormalize` divides by: sigmoids can all be zero.
    """

    k: int
    renormalize: bool = False
    scale: float = 1.0
    score: Literal["softmax", "sigmoid", "sqrtsoftplus"] = "softmax"
    corrected: bool = False
    groups: Groups | None = None
    bias: bool = False
    floor: float = 1e-20

    def build(self, experts: int, features: int, policy: Policy) -> Gate:
        return Gate(self, experts, features, policy)

    def check(self, experts: int) -> None:
        """Raises ConfigError if the router cannot choose among that many experts."""
        groups = self.groups or Groups(1, 1)
        size = experts // groups.count if groups.count else 0
        if not (size * groups.count == experts and 0 < groups.kept <= groups.count and groups.best <= size):
            raise ConfigError(f"{experts} experts cannot stand in {groups}")
        if not 0 < self.k <= size * groups.kept:
            raise ConfigError(f"{self.k} of {size * groups.kept} experts cannot be chosen")

    def choose(self, logits_BTE: jax.Array, correction_E: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Returns weights and indices of the chosen experts, [B, T, K] each, from float32 logits."""
        scores = self.scores(logits_BTE)
        eligible = scores if correction_E is None else scores + correction_E
        if self.groups is not None:
            eligible = self.groups.limit(eligible)
        _, chosen_BTK = jax.lax.top_k(eligible, self.k)
        return self.weights(scores, chosen_BTK), chosen_BTK

    def scores(self, logits_BTE: jax.Array) -> jax.Array:
        """Returns how well each expert fits."""
        if self.score == "sqrtsoftplus":
            return jnp.sqrt(jax.nn.softplus(logits_BTE))
        return jax.nn.softmax(logits_BTE) if self.score == "softmax" else jax.nn.sigmoid(logits_BTE)

    def weights(self, scores_BTE: jax.Array, chosen_BTK: jax.Array) -> jax.Array:
        """Returns the weights of the chosen experts, [B, T, K]."""
        weights_BTK = jnp.take_along_axis(scores_BTE, chosen_BTK, axis=-1)
        if self.renormalize:
            weights_BTK = weights_BTK / (jnp.sum(weights_BTK, axis=-1, keepdims=True) + self.floor)
        return weights_BTK * self.scale


@dataclass(frozen=True)
class MoE(Part):
    """`experts` copies of `expert`, among which `router` chooses; `shared` acts on every token.

    The router's weights multiply the experts' outputs, or (`weigh`) their inputs (Llama 4). With `shared_gate` the
    shared expert's output is multiplied by the sigmoid of a learned projection (Qwen2-MoE). Beyond the experts, `zero`
    more can be chosen that return their input (LongCat). With `latent` features the experts, but not the router, work
    on a projection of that width (Nemotron-H).
    """

    experts: int
    expert: GLU | MLP
    router: Router
    shared: Part | None = None
    shared_gate: bool = False
    weigh: Literal["outputs", "inputs"] = "outputs"
    zero: int = 0
    latent: int | None = None

    def __post_init__(self):
        assert self.expert.norm is None, "experts are computed together, without norms between"
        assert self.weigh == "outputs" or self.zero == 0, "an expert that returns its input has no weighted input"
        self.router.check(self.experts + self.zero)

    def build(self, features: int, policy: Policy) -> MoELayer:
        return MoELayer(self, features, policy)

    def reads(self) -> Iterable[str]:
        return self.router.reads()

    def hands_on(self) -> Iterable[str]:
        return self.router.hands_on()


class MoELayer(nnx.Module):
    def __init__(self, record: MoE, features: int, policy: Policy):
        self.gate = record.router.build(record.experts + record.zero, features, policy)
        inner = record.latent or features
        self.latent_in_proj = Linear(features, inner, policy) if record.latent else None
        self.experts = Experts(record.experts, record.expert, inner, policy, record.weigh)
        self.latent_out_proj = Linear(inner, features, policy) if record.latent else None
        self.shared_expert = None if record.shared is None else record.shared.build(features, policy)
        self.shared_expert_gate = Float32Linear(features, 1, policy) if record.shared_gate else None
        self.record = record

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array | Handed, Any]:
        (weights_BTK, chosen_BTK), values = received(self.gate(x_BTD, context))
        inputs_BTD = x_BTD if self.latent_in_proj is None else self.latent_in_proj(x_BTD)
        y_BTD = self.experts(inputs_BTD, weights_BTK, chosen_BTK)
        if self.record.zero:
            kept_BT1 = jnp.sum(weights_BTK * (chosen_BTK >= self.record.experts), axis=-1, keepdims=True)
            y_BTD = y_BTD + (inputs_BTD * kept_BT1).astype(y_BTD.dtype)
        if self.latent_out_proj is not None:
            y_BTD = self.latent_out_proj(y_BTD)
        if self.shared_expert is None:
            return handing(y_BTD, values), cache
        shared, _ = self.shared_expert(x_BTD, context, None)
        if self.shared_expert_gate is not None:
            shared = shared * jax.nn.sigmoid(self.shared_expert_gate(x_BTD)).astype(shared.dtype)
        return handing(y_BTD + shared, values), cache


class Gate(nnx.Module):
    """The router's parameters: `kernel` [experts, features], perhaps `bias` and `correction_bias` [experts].

    They are never quantized. The correction, which balances the experts' load, is never cast to 16 bits either:
    rounding would change which experts are chosen.
    """

    def __init__(self, router: TopK, experts: int, features: int, policy: Policy):
        self.kernel = parameter((experts, features), policy)
        self.bias = parameter((experts,), policy) if router.bias else None
        self.correction_bias = buffer((experts,), jnp.float32) if router.corrected else None
        self.router, self.policy = router, replace(policy, dtype=jnp.dtype(jnp.float32))

    def __call__(self, x_BTD: jax.Array, context: Context) -> tuple[jax.Array, jax.Array]:
        """Returns weights and indices of the chosen experts, [B, T, K] each."""
        logits_BTE = contract(x_BTD, self.kernel[...], self.policy, split_of(self.kernel))
        if self.bias is not None:
            logits_BTE = logits_BTE + self.bias[...].astype(logits_BTE.dtype)
        return self.router.choose(logits_BTE, None if self.correction_bias is None else self.correction_bias[...])
