"""Gated short convolutions as mixers (Liquid AI 2025, arXiv:2511.23404)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
from flax import nnx

from easydel.layers.context import Context
from easydel.layers.conv import CausalConv
from easydel.layers.linear import Linear
from easydel.layers.part import Cached, Part, empty
from easydel.layers.recurrent import attended, kept, past
from easydel.policy import Policy

# B batch, T length, D model
State = dict[str, Cached]


@dataclass(frozen=True)
class ShortConv(Part):
    """out(C * conv(B * x)), where B, C and x are projections of the input, and `conv` is over `width` tokens.

    There are as many `channels` as the model has features.
    """

    name: ClassVar[str] = "conv"
    channels: int
    width: int
    bias: bool = False

    def carries(self, tokens: int) -> str:
        return "short convolutions"

    def build(self, features: int, policy: Policy) -> ShortConvLayer:
        return ShortConvLayer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> State:
        """Returns the last inputs of the convolution."""
        return {"conv": empty((batch, self.width - 1, self.channels), dtype, "batch", None, "mlp")}


class ShortConvLayer(nnx.Module):
    def __init__(self, record: ShortConv, features: int, policy: Policy):
        self.in_proj_b = Linear(features, record.channels, policy, bias=record.bias)
        self.in_proj_c = Linear(features, record.channels, policy, bias=record.bias)
        self.in_proj_x = Linear(features, record.channels, policy, bias=record.bias)
        self.conv = CausalConv(record.channels, record.width, policy, bias=record.bias)
        self.out_proj = Linear(record.channels, features, policy, bias=record.bias)

    def __call__(self, x_BTD: jax.Array, context: Context, cache: State | None) -> tuple[jax.Array, State | None]:
        given_BTD = attended(self.in_proj_b(x_BTD) * self.in_proj_x(x_BTD), context)
        mixed_BTD, past_BWD = self.conv(given_BTD, past(cache, "conv"))
        return self.out_proj(self.in_proj_c(x_BTD) * mixed_BTD), kept(cache, conv=past_BWD)
