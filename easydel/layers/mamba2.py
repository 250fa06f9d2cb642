"""The mixer of Mamba 2 (Dao & Gu 2024, arXiv:2405.21060): heads with a scalar decay, in groups that share B and C."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.errors import ConfigError
from easydel.layers.activations import activation
from easydel.layers.context import Context
from easydel.layers.conv import CausalConv
from easydel.layers.linear import Float32Linear, Linear, parameter
from easydel.layers.norm import RMSNorm
from easydel.layers.part import Cached, Part, empty
from easydel.layers.recurrent import attended, kept, past
from easydel.ops.ssd import state_space_dual
from easydel.policy import Policy
from easydel.sharding.axes import AxisName

# B batch, T length, D model, I inner channels (of all heads), C channels, N heads, G groups, R heads of a group,
# P channels of a head, S states
State = dict[str, Cached]
IN_PROJ = ("in_proj_z", "in_proj_x", "in_proj_b", "in_proj_c", "in_proj_dt")  # in the order of checkpoints


@dataclass(frozen=True)
class GatedNorm:
    """`norm` over each of `groups` equal parts of the channels, after the gate, or `before_gate`."""

    norm: RMSNorm
    groups: int
    before_gate: bool = False

    def build(self, features: int, policy: Policy) -> GatedNormLayer:
        return GatedNormLayer(self, features, policy)


class GatedNormLayer(nnx.Module):
    def __init__(self, record: GatedNorm, features: int, policy: Policy):
        self.scale = parameter((features,), policy)
        self.record = record

    def __call__(self, y_BTI: jax.Array, gate_BTI: jax.Array) -> jax.Array:
        """Maps float32 to float32: squares overflow or vanish in 16 bits."""
        y_BTI = y_BTI if self.record.before_gate else y_BTI * gate_BTI
        grouped = y_BTI.reshape(*y_BTI.shape[:-1], self.record.groups, -1)
        y_BTI = self.record.norm.normalise(grouped).reshape(y_BTI.shape) * self.scale[...].astype(jnp.float32)
        return y_BTI * gate_BTI if self.record.before_gate else y_BTI


@dataclass(frozen=True)
class Mamba2(Part):
    """`heads` of `head_dim` channels with `states` each, after a convolution over `width` tokens.

    The heads are in `groups` that share B and C. `bias` belongs to the projections in, `out_bias` to the one out. Time
    steps are limited to `limits`. `scales` multiply the projected gate, x, B, C and time steps.
    """

    name: ClassVar[str] = "mixer"
    heads: int
    head_dim: int
    groups: int
    states: int
    width: int
    act: str
    norm: GatedNorm | None = None
    bias: bool = False
    out_bias: bool = False
    conv_bias: bool = True
    limits: tuple[float, float] = (0.0, float("inf"))
    scales: tuple[float, ...] = (1.0,) * len(IN_PROJ)

    def __post_init__(self):
        activation(self.act)
        if self.heads % self.groups:
            raise ConfigError(f"{self.heads} heads cannot stand in {self.groups} groups")
        assert len(self.scales) == len(IN_PROJ)

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers of convolved channels: of x, B and C."""
        shared = self.groups * self.states
        return {"x": self.heads * self.head_dim, "b": shared, "c": shared}

    def carries(self, tokens: int) -> str:
        return "Mamba 2"

    def build(self, features: int, policy: Policy) -> Mamba2Layer:
        return Mamba2Layer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> State:
        """Returns the convolution's last inputs, and the state in float32, the dtype it is computed in."""
        inner = {"x": "mlp", "b": None, "c": None}  # all heads of a group need its B and C
        past = {
            name: empty((batch, self.width - 1, size), dtype, "batch", None, inner[name])
            for name, size in self.sizes.items()
        }
        shape = (batch, self.heads, self.head_dim, self.states)
        return past | {"ssm": empty(shape, jnp.float32, "batch", "mlp", None, None)}


class Mamba2Layer(nnx.Module):
    def __init__(self, record: Mamba2, features: int, policy: Policy):
        sizes, inner = record.sizes, record.heads * record.head_dim
        for name, size in zip(IN_PROJ, (inner, *sizes.values()), strict=False):
            setattr(self, name, Linear(features, size, policy, bias=record.bias))
        self.in_proj_dt = Float32Linear(features, record.heads, policy, bias=record.bias)
        self.conv1d = CausalConv(sum(sizes.values()), record.width, policy, bias=record.conv_bias)
        self.dt_bias = parameter((record.heads,), policy)
        self.A_log = parameter((record.heads,), policy)
        self.D = parameter((record.heads,), policy)
        self.norm = None if record.norm is None else record.norm.build(inner, policy)
        self.out_proj = Linear(inner, features, policy, bias=record.out_bias)
        self.record, self.policy = record, policy

    def __call__(self, x_BTD: jax.Array, context: Context, cache: State | None) -> tuple[jax.Array, State | None]:
        z_BTI, x_BTI, b_BTC, c_BTC, dt_BTN = self._projected(x_BTD)
        inputs, new = {"x": x_BTI, "b": b_BTC, "c": c_BTC}, {}
        for name, channels in self._channels().items():
            convolved, new[name] = self.conv1d(attended(inputs[name], context), past(cache, name), channels)
            inputs[name] = activation(self.record.act)(convolved).astype(jnp.float32)
        step_BTN = jax.nn.softplus(dt_BTN + self.dt_bias[...].astype(jnp.float32))
        step_BTN = attended(jnp.clip(step_BTN, *self.record.limits), context)
        y_BTI, new["ssm"] = self._scan(inputs["x"], step_BTN, inputs["b"], inputs["c"], past(cache, "ssm"))
        gate_BTI = jax.nn.silu(z_BTI.astype(jnp.float32))
        y_BTI = y_BTI * gate_BTI if self.norm is None else self.norm(y_BTI, gate_BTI)
        return self.out_proj(y_BTI.astype(self.policy.dtype)), kept(cache, **new)

    def _projected(self, x_BTD: jax.Array) -> list[jax.Array]:
        """Returns the gate, x, B, C and time steps. Heads are split; B and C are whole for their group."""
        mlp = self.policy.axes.mlp_axis
        split = dict(zip(IN_PROJ, (mlp, mlp, None, None, mlp), strict=True))
        parts = [self._shard(getattr(self, name)(x_BTD), axis) for name, axis in split.items()]
        return [part if scale == 1.0 else part * scale for part, scale in zip(parts, self.record.scales, strict=True)]

    def _channels(self) -> dict[str, slice]:
        """Returns the places of x, B and C among the channels of the convolution."""
        start, found = 0, {}
        for name, size in self.record.sizes.items():
            found[name] = slice(start, start + size)
            start += size
        return found

    def _scan(
        self, x_BTI: jax.Array, step_BTN: jax.Array, b_BTC: jax.Array, c_BTC: jax.Array, state_BNPS: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        record, (B, T, _) = self.record, x_BTI.shape
        G, R, P, S = record.groups, record.heads // record.groups, record.head_dim, record.states
        if state_BNPS is None:
            state_BNPS = jnp.zeros((B, record.heads, P, S), jnp.float32)
        x_BTGRP, (b_BTGS, c_BTGS) = x_BTI.reshape(B, T, G, R, P), (part.reshape(B, T, G, S) for part in (b_BTC, c_BTC))
        a_GR = -jnp.exp(self.A_log[...].astype(jnp.float32)).reshape(G, R)
        y_BTGRP, state = state_space_dual(
            x_BTGRP, step_BTN.reshape(B, T, G, R), a_GR, b_BTGS, c_BTGS, state_BNPS.reshape(B, G, R, P, S)
        )
        y_BTGRP = y_BTGRP + x_BTGRP * self.D[...].astype(jnp.float32).reshape(G, R, 1)
        return self._shard(y_BTGRP.reshape(B, T, -1), self.policy.axes.mlp_axis), state.reshape(state_BNPS.shape)

    def _shard(self, x_BTC: jax.Array, channels: AxisName) -> jax.Array:
        """Splits by channels but not by tokens: the recurrence goes through all tokens in order."""
        return self.policy.shard(x_BTC, self.policy.axes.batch_axis, None, channels)
