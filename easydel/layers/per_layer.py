"""Inputs for every layer beside the hidden states: of each token, by its id and by its vector (Gemma 3n, Gemma 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.layers.activations import activation
from easydel.layers.context import Context
from easydel.layers.linear import Embedding, Linear
from easydel.layers.norm import AnyNorm
from easydel.layers.part import Part
from easydel.policy import Policy

# B batch, T tokens of this call, D model, L layers, P channels that each layer gets for itself
NAME = "per_layer"


@dataclass(frozen=True)
class TokenInputs:
    """Each layer gets `width` channels: a row of a table of its own, and a normed projection of the token's vector.

    Ids from `vocab` on, which have no row, are read as 0.
    """

    vocab: int
    width: int
    norm: AnyNorm

    def build(self, features: int, layers: int, policy: Policy) -> TokenInputsModule:
        return TokenInputsModule(self, features, layers, policy)


class TokenInputsModule(nnx.Module):
    def __init__(self, record: TokenInputs, features: int, layers: int, policy: Policy):
        self.embed_tokens = Embedding(record.vocab, layers * record.width, policy, words=True)
        self.projection = Linear(features, layers * record.width, policy)
        self.norm = record.norm.build(record.width, policy)
        self.record, self.features, self.layers = record, features, layers

    def __call__(self, ids_BT: jax.Array, x_BTD: jax.Array, context: Context) -> dict[str, jax.Array]:
        width = self.record.width
        rows = self.embed_tokens(jnp.where(ids_BT < self.record.vocab, ids_BT, 0))
        rows = rows * jnp.asarray(width**0.5, rows.dtype)
        projected = self.projection(x_BTD) * jnp.asarray(self.features**-0.5, rows.dtype)
        rows_BTLP, projected_BTLP = (part.reshape(*ids_BT.shape, self.layers, width) for part in (rows, projected))
        both_BTLP = (self.norm(projected_BTLP) + rows_BTLP) * jnp.asarray(2**-0.5, rows.dtype)
        return {NAME: jnp.moveaxis(both_BTLP, 2, 0)}


@dataclass(frozen=True)
class LayerInput(Part):
    """norm(projection(act(gate(x)) * input)), where the input is what `TokenInputs` has for the layer."""

    name: ClassVar[str] = "per_layer_input"
    width: int
    act: str
    norm: AnyNorm

    def __post_init__(self):
        activation(self.act)

    def build(self, features: int, policy: Policy) -> LayerInputModule:
        return LayerInputModule(self, features, policy)


class LayerInputModule(nnx.Module):
    def __init__(self, record: LayerInput, features: int, policy: Policy):
        self.gate = Linear(features, record.width, policy)
        self.projection = Linear(record.width, features, policy)
        self.norm = record.norm.build(features, policy)
        self.act = record.act

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        gated_BTP = activation(self.act)(self.gate(x_BTD)) * context.each[NAME]
        return self.norm(self.projection(gated_BTP)), cache
