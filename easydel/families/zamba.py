"""Zamba (Glorioso et al. 2024, arXiv:2405.16712): Mamba 1 by heads, and one transformer that some layers share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.families import _zamba as base, llama
from easydel.families._mamba2 import LINEAR
from easydel.families._parts import (
    GLU,
    ConfigError,
    Decoder,
    Fused,
    HFConfig,
    Names,
    Part,
    RMSNorm,
    family,
    interleaved,
)
from easydel.layers.activations import activation
from easydel.layers.context import Context
from easydel.layers.conv import CausalConv
from easydel.layers.global_block import GlobalBlock
from easydel.layers.linear import Linear, parameter
from easydel.layers.part import empty
from easydel.layers.recurrent import attended, kept, past
from easydel.ops.recurrence import selective_scan
from easydel.policy import Policy

# B batch, T length, D model, I channels, N heads, P channels of a head, S states of a channel, R time step rank
TABLE = Names(base.ROWS, fused=(Fused("mixer.in_proj", ("mixer.in_proj_x", "mixer.in_proj_z"), interleaved),))


@dataclass(frozen=True)
class HeadedMamba(Part):
    """Mamba 1 whose time steps, B and C are each of `heads`' own: `inner` channels with `states` each."""

    name: ClassVar[str] = "mixer"
    inner: int
    heads: int
    states: int
    width: int
    dt_rank: int
    act: str
    bias: bool = False
    conv_bias: bool = True

    def __post_init__(self):
        activation(self.act)
        if self.inner % self.heads:
            raise ConfigError(f"{self.inner} channels cannot stand in {self.heads} heads")

    def carries(self, tokens: int) -> str:
        return "Mamba"

    def build(self, features: int, policy: Policy) -> HeadedMambaLayer:
        return HeadedMambaLayer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> Any:
        """Returns the last inputs of the convolution and the state, in float32 as it is computed."""
        conv = empty((batch, self.width - 1, self.inner), dtype, "batch", None, "mlp")
        shape = (batch, self.heads, self.states, self.inner // self.heads)
        return {"conv": conv, "ssm": empty(shape, jnp.float32, "batch", "mlp", None, None)}


class HeadedMambaLayer(nnx.Module):
    def __init__(self, record: HeadedMamba, features: int, policy: Policy):
        heads, width, states = record.heads, record.inner // record.heads, record.states
        self.in_proj_x = Linear(features, record.inner, policy, bias=record.bias)
        self.in_proj_z = Linear(features, record.inner, policy, bias=record.bias)
        self.conv1d = CausalConv(record.inner, record.width, policy, bias=record.conv_bias)
        self.x_proj_weight = parameter((heads, record.dt_rank + 2 * states, width), policy)
        self.dt_proj_weight = parameter((heads, width, record.dt_rank), policy)
        self.dt_proj_bias = parameter((heads, width), policy)
        self.A_log = parameter((heads, width, states), policy)
        self.D = parameter((heads, width), policy)
        self.out_proj = Linear(record.inner, features, policy, bias=record.bias)
        self.record, self.policy = record, policy

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        x_BTI, gate_BTI = self._shard(self.in_proj_x(x_BTD)), self._shard(self.in_proj_z(x_BTD))
        x_BTI, conv = self.conv1d(attended(x_BTI, context), past(cache, "conv"))
        x_BTI = attended(activation(self.record.act)(x_BTI), context).astype(jnp.float32)
        x_BTNP = x_BTI.reshape(*x_BTI.shape[:2], self.record.heads, -1)
        y_BTNP, ssm = self._scan(x_BTNP, past(cache, "ssm"))
        y_BTNP = y_BTNP + x_BTNP * self._float32("D")
        y_BTI = self._shard(y_BTNP.reshape(x_BTI.shape)) * jax.nn.silu(gate_BTI)
        return self.out_proj(y_BTI.astype(self.policy.dtype)), kept(cache, conv=conv, ssm=ssm)

    def _scan(self, x_BTNP: jax.Array, state_BNSP: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """In float32: states decay by exponentials of what is projected here."""
        record, precision = self.record, self.policy.precision
        ends = [record.dt_rank, record.dt_rank + record.states]
        made_BTNE = jnp.einsum("BTNP,NEP->BTNE", x_BTNP, self._float32("x_proj_weight"), precision=precision)
        step_BTNR, b_BTNS, c_BTNS = jnp.split(made_BTNE, ends, axis=-1)
        step_BTNP = jnp.einsum("BTNR,NPR->BTNP", step_BTNR, self._float32("dt_proj_weight"), precision=precision)
        step_BTNP = jax.nn.softplus(step_BTNP + self._float32("dt_proj_bias"))
        a_NSP = -jnp.exp(self._float32("A_log")).swapaxes(1, 2)
        if state_BNSP is None:
            state_BNSP = jnp.zeros((x_BTNP.shape[0], *a_NSP.shape), jnp.float32)
        by_head = jax.vmap(selective_scan, in_axes=(2, 2, 0, 2, 2, 1), out_axes=(2, 1))
        return by_head(x_BTNP, step_BTNP, a_NSP, b_BTNS, c_BTNS, state_BNSP)

    def _float32(self, name: str) -> jax.Array:
        return getattr(self, name)[...].astype(jnp.float32)

    def _shard(self, x_BTI: jax.Array) -> jax.Array:
        """Split by channels, and not by tokens: the recurrence goes through all of them in order."""
        return self.policy.shard(x_BTI, self.policy.axes.batch_axis, None, self.policy.axes.mlp_axis)


def kinds(c: HFConfig) -> Sequence[str]:
    later = range(c.num_hidden_layers - 3)
    asking = [base.HYBRID if i % c.attn_layer_period == c.attn_layer_offset else LINEAR for i in later]
    return base.kinds(c, [LINEAR, LINEAR, base.HYBRID, *asking])


def names(c: HFConfig) -> Names:
    return base.names(kinds(c), 1, "shared_transf", TABLE)


@family("zamba", names)
def zamba(c: HFConfig) -> Decoder:
    heads, wide = c.num_attention_heads, c.only("attention_hidden_size", 2 * c.hidden_size)
    dim = c.get("attention_head_dim") or wide // heads
    sizes = {"kv": c.get("num_key_value_heads") or heads, "dim": dim, "scale": (dim / 2) ** -0.5}
    ffn = GLU(c.intermediate_size, c.hidden_act)
    shared = GlobalBlock(llama.assembled(heads, sizes), ffn, RMSNorm(c.rms_norm_eps))
    rank = math.ceil(c.hidden_size / 16) if c.mamba_dt_rank == "auto" else c.mamba_dt_rank
    channels = (c.mamba_expand * c.hidden_size, c.n_mamba_heads, c.mamba_d_state, c.mamba_d_conv, rank)
    mixer = HeadedMamba(*channels, c.hidden_mamba_act, c.mamba_proj_bias, c.mamba_conv_bias)
    return base.decoder(c, kinds(c), mixer, [shared])
