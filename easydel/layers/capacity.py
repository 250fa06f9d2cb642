"""Routers whose experts take a limited number of tokens in a call: what comes too late gets no expert."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.errors import ConfigError
from easydel.layers.context import Context
from easydel.layers.linear import contract, parameter
from easydel.layers.moe import Router
from easydel.policy import Policy
from easydel.tree import split_of

# B batch, T length, D model, E experts, N tokens of all rows


class Limited(Router):
    """A router that chooses from float32 logits [B, T, E], and from which tokens are real (`valid_BT`; None: all).

    Padding gets no expert and takes no place.
    """

    bias: bool

    def build(self, experts: int, features: int, policy: Policy) -> LimitedGate:
        return LimitedGate(self, experts, features, policy)

    def choose(self, logits_BTE: jax.Array, valid_BT: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Returns weights and indices of the chosen experts, [B, T, K] each. Without a place, the weight is 0."""
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class FirstChoice(Limited):
    """The most probable expert, weighted by its probability (Switch, Fedus et al. 2021, arXiv:2101.03961).

    Of each row, an expert takes the first `capacity` tokens that choose it.
    """

    capacity: int
    bias: bool = False

    def choose(self, logits_BTE: jax.Array, valid_BT: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        weights_BT1, chosen_BT1 = jax.lax.top_k(jax.nn.softmax(logits_BTE), 1)
        asked_BTE = _asked(chosen_BT1[..., 0], logits_BTE.shape[-1], valid_BT)
        fits_BT = jnp.any((asked_BTE > 0) & (jnp.cumsum(asked_BTE, axis=1) <= self.capacity), axis=-1)
        return weights_BT1 * fits_BT[..., None], chosen_BT1


@dataclass(frozen=True)
class TwoChoices(Limited):
    """The two most probable experts, with weights that sum to `scale` (NLLB, 2022, arXiv:2207.04672).

    An expert takes `capacity` tokens of all rows together, or `fraction` of them if that is given, and first choices
    before second ones. With `best_first`, the tokens that are surest of their first choice come first, else the first
    tokens. The weights are made to sum to `scale` before tokens are left out, or after (`renormalize`).
    """

    capacity: int
    fraction: float | None = None
    best_first: bool = False
    renormalize: bool = False
    scale: float = 1.0
    bias: bool = False

    def check(self, experts: int) -> None:
        if experts < 2:
            raise ConfigError(f"two of {experts} experts cannot be chosen")

    def choose(self, logits_BTE: jax.Array, valid_BT: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        scores_BTE = jax.nn.softmax(logits_BTE)
        weights_BT2, chosen_BT2 = jax.lax.top_k(scores_BTE, 2)
        fits_BT2 = self._fits(chosen_BT2, weights_BT2[..., 0], logits_BTE.shape[-1], valid_BT)
        if self.renormalize:
            weights_BT2 = weights_BT2 * fits_BT2
        total_BT1 = jnp.sum(weights_BT2, axis=-1, keepdims=True)
        shares_BT2 = weights_BT2 / jnp.maximum(total_BT1, jnp.finfo(jnp.float32).eps)
        return shares_BT2 * fits_BT2 * self.scale, chosen_BT2

    def _fits(self, chosen_BT2: jax.Array, best_BT: jax.Array, experts: int, valid_BT: jax.Array | None) -> jax.Array:
        """Returns whether each choice finds a place, [B, T, 2]."""
        B, T, _ = chosen_BT2.shape
        places = self.capacity if self.fraction is None else math.ceil(self.fraction * B * T)
        first_NE, second_NE = (
            _asked(chosen_BT2[..., choice], experts, valid_BT).reshape(-1, experts) for choice in (0, 1)
        )
        order_N = jnp.argsort(-best_BT.reshape(-1)) if self.best_first else jnp.arange(B * T)
        back_N = jnp.argsort(order_N) if self.best_first else order_N

        def before(asked_NE: jax.Array) -> jax.Array:
            return jnp.cumsum(asked_NE[order_N], axis=0)[back_N] - asked_NE

        taken_E = jnp.sum(first_NE, axis=0)
        fits = (
            jnp.any((first_NE > 0) & (before(first_NE) < places), axis=-1),
            jnp.any((second_NE > 0) & (before(second_NE) + taken_E < places), axis=-1),
        )
        return jnp.stack(fits, axis=-1).reshape(B, T, 2)


def _asked(chosen_BT: jax.Array, experts: int, valid_BT: jax.Array | None) -> jax.Array:
    """Returns 1 where a real token chose an expert, [B, T, E]."""
    asked_BTE = jax.nn.one_hot(chosen_BT, experts, dtype=jnp.int32)
    return asked_BTE if valid_BT is None else asked_BTE * valid_BT[..., None]


class LimitedGate(nnx.Module):
    """The router's parameters, `kernel` [experts, features] and perhaps `bias` [experts]; they are never quantized."""

    def __init__(self, router: Limited, experts: int, features: int, policy: Policy):
        self.kernel = parameter((experts, features), policy)
        self.bias = parameter((experts,), policy) if router.bias else None
        self.router, self.policy = router, replace(policy, dtype=jnp.dtype(jnp.float32))

    def __call__(self, x_BTD: jax.Array, context: Context) -> tuple[jax.Array, Any]:
        """Returns weights and indices of the chosen experts, [B, T, K] each."""
        logits_BTE = contract(x_BTD, self.kernel[...], self.policy, split_of(self.kernel))
        if self.bias is not None:
            logits_BTE = logits_BTE + self.bias[...].astype(logits_BTE.dtype)
        return self.router.choose(logits_BTE, context.valid_BT)
