"""Residuals with learned scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from easydel.layers.block import Block, BlockLayer, normed
from easydel.layers.norm import Affine
from easydel.policy import Policy

# B batch, T tokens of this call, D model


@dataclass(frozen=True, kw_only=True)
class ScaledJoins(Block):
    """A block in which `read` scales what a part's output is added to, and `branch`, if given, that output."""

    read: Affine
    branch: Affine | None = None

    def build(self, features: int, policy: Policy) -> ScaledJoinsLayer:
        return ScaledJoinsLayer(self, features, policy)


class Join(nnx.Module):
    def __init__(self, record: ScaledJoins, features: int, policy: Policy):
        self.read = record.read.build(features, policy)
        self.branch = None if record.branch is None else record.branch.build(features, policy)

    def __call__(self, x_BTD: jax.Array, branch_BTD: jax.Array) -> jax.Array:
        return normed(self.branch, branch_BTD.astype(x_BTD.dtype)) + self.read(x_BTD)


class ScaledJoinsLayer(BlockLayer):
    def __init__(self, record: ScaledJoins, features: int, policy: Policy):
        super().__init__(record, features, policy)
        self.joins = nnx.Dict(mixer=Join(record, features, policy), ffn=Join(record, features, policy))

    def _sequential(self, x_BTD: jax.Array, run: Any) -> jax.Array:
        x_BTD = self.joins["mixer"](x_BTD, run("mixer", normed(self.input_layernorm, x_BTD)))
        return self.joins["ffn"](x_BTD, run("ffn", normed(self.post_attention_layernorm, x_BTD)))
