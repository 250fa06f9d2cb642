"""Routing by token id: which experts a token goes to stands in a table (Roller et al. 2021, arXiv:2106.04426)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.layers.context import Context
from easydel.layers.linear import buffer, contract, parameter
from easydel.layers.moe import Router, TopK
from easydel.policy import Policy
from easydel.tree import split_of


@dataclass(frozen=True)
class ByToken(Router):
    """The experts that a table has for each of `vocab` token ids, weighted as `weighed` weighs its own choice."""

    vocab: int
    weighed: TopK

    def build(self, experts: int, features: int, policy: Policy) -> TokenGate:
        return TokenGate(self, experts, features, policy)

    def check(self, experts: int) -> None:
        self.weighed.check(experts)

    def reads(self) -> Iterable[str]:
        yield "ids_BT"


class TokenGate(nnx.Module):
    """A `kernel` [experts, features], never quantized, and the table: `experts_of_token` [vocab, k]."""

    def __init__(self, router: ByToken, experts: int, features: int, policy: Policy):
        self.kernel = parameter((experts, features), policy)
        self.experts_of_token = buffer((router.vocab, router.weighed.k), jnp.int32)
        self.router, self.policy = router, replace(policy, dtype=jnp.dtype(jnp.float32))

    def __call__(self, x_BTD: jax.Array, context: Context) -> tuple[jax.Array, jax.Array]:
        """Returns weights and indices of the chosen experts, [B, T, K] each."""
        assert context.ids_BT is not None
        weighed = self.router.weighed
        chosen_BTK = self.experts_of_token[...][context.ids_BT].astype(jnp.int32)
        logits_BTE = contract(x_BTD, self.kernel[...], self.policy, split_of(self.kernel))
        return weighed.weights(weighed.scores(logits_BTE), chosen_BTK), chosen_BTK
