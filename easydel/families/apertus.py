"""Apertus (Apertus Team 2025, arXiv:2509.14233): no gates, an activation with learned parts, norms on q and k."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.families import llama as base
from easydel.families._parts import MLP, Decoder, HFConfig, Part, QKNorm, RMSNorm, family
from easydel.layers.context import Context
from easydel.layers.linear import Linear, buffer, parameter
from easydel.layers.mlp import saved
from easydel.policy import Policy

NAMES = base.NAMES.extended(
    {"input_layernorm": "attention_layernorm", "post_attention_layernorm": "feedforward_layernorm"}
)


@dataclass(frozen=True)
class XIELU(Part):
    """down(xielu(up(x))) with `hidden` features between (Huang & Schlag 2024, arXiv:2411.13010)."""

    hidden: int

    def build(self, features: int, policy: Policy) -> XIELULayer:
        return XIELULayer(self, features, policy)


class XIELULayer(nnx.Module):
    def __init__(self, record: XIELU, features: int, policy: Policy):
        self.up_proj = Linear(features, record.hidden, policy)
        self.down_proj = Linear(record.hidden, features, policy)
        self.act_fn = Curve(policy)

    def __call__(self, x: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        return self.down_proj(self.act_fn(saved(self.up_proj(x)))), cache


class Curve(nnx.Module):
    """A parabola above zero, an integrated ELU below; `beta` is the slope at zero. Alphas go through softplus."""

    def __init__(self, policy: Policy):
        self.alpha_p, self.alpha_n = parameter((1,), policy), parameter((1,), policy)
        self.beta, self.eps = buffer((), jnp.float32), buffer((), jnp.float32)

    def __call__(self, y: jax.Array) -> jax.Array:
        x = y.astype(jnp.float32)  # expm1(x) - x cancels
        beta, eps = (part[...].astype(jnp.float32) for part in (self.beta, self.eps))
        above, below = (jax.nn.softplus(part[...].astype(jnp.float32)) for part in (self.alpha_p, self.alpha_n))
        bent = jnp.where(x > 0, above * x * x, (beta + below) * (jnp.expm1(jnp.minimum(x, eps)) - x))
        return (bent + beta * x).astype(y.dtype)


@family("apertus", NAMES)
def apertus(c: HFConfig) -> Decoder:
    c.only("qk_norm", True)
    bias, norm = c.attention_bias, QKNorm(RMSNorm(c.rms_norm_eps))
    mixer = base.attention(c, biased=bias, norms=norm)
    ffn = XIELU(c.intermediate_size) if c.hidden_act == "xielu" else MLP(c.intermediate_size, c.hidden_act, bias=False)
    return base.pre_norm(c, [mixer] * c.num_hidden_layers, [ffn] * c.num_hidden_layers)
