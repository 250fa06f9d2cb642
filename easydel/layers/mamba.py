"""The mixer of Mamba 1 (Gu & Dao 2023, arXiv:2312.00752): a recurrence whose steps depend on the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.layers.activations import activation
from easydel.layers.context import Context
from easydel.layers.conv import CausalConv
from easydel.layers.linear import Float32Linear, Linear, parameter
from easydel.layers.norm import RMSNorm
from easydel.layers.part import Cached, Part, empty
from easydel.layers.recurrent import attended, kept, past
from easydel.ops.recurrence import selective_scan
from easydel.policy import Policy

# B batch, T length, D model, I channels, S states of each channel, R time step rank
MambaState = dict[str, Cached]
NORMS = ("dt_layernorm", "b_layernorm", "c_layernorm")


@dataclass(frozen=True)
class Mamba(Part):
    """`inner` channels with `states` each, after a convolution over `width` tokens.

    `dt_rank` is the rank of the projection to time steps. `norm` acts on that latent, on B and on C (Falcon Mamba,
    Jamba). `bias` belongs to the projections in and out.
    """

    name: ClassVar[str] = "mixer"
    inner: int
    states: int
    width: int
    dt_rank: int
    act: str
    bias: bool = False
    conv_bias: bool = True
    norm: RMSNorm | None = None

    def carries(self, tokens: int) -> str:
        return "Mamba"

    def build(self, features: int, policy: Policy) -> MambaLayer:
        return MambaLayer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> MambaState:
        """Returns the convolution's last inputs, and the state in float32, the dtype it is computed in."""
        axes = ("batch", None, "mlp")
        return {
            "conv": empty((batch, self.width - 1, self.inner), dtype, *axes),
            "ssm": empty((batch, self.states, self.inner), jnp.float32, *axes),
        }


class MambaLayer(nnx.Module):
    def __init__(self, record: Mamba, features: int, policy: Policy):
        self.in_proj = Linear(features, 2 * record.inner, policy, bias=record.bias)
        self.conv1d = CausalConv(record.inner, record.width, policy, bias=record.conv_bias)
        self.x_proj = Float32Linear(record.inner, record.dt_rank + 2 * record.states, policy)
        for name, size in zip(NORMS, (record.dt_rank, record.states, record.states), strict=True):
            setattr(self, name, None if record.norm is None else record.norm.build(size, policy))
        self.dt_proj = Float32Linear(record.dt_rank, record.inner, policy, bias=True)
        self.A_log = parameter((record.inner, record.states), policy)
        self.D = parameter((record.inner,), policy)
        self.out_proj = Linear(record.inner, features, policy, bias=record.bias)
        self.record, self.policy = record, policy

    def __call__(
        self, x_BTD: jax.Array, context: Context, cache: MambaState | None
    ) -> tuple[jax.Array, MambaState | None]:
        x_BTI, gate_BTI = (self._shard(part) for part in jnp.split(self.in_proj(x_BTD), 2, axis=-1))
        x_BTI, past_BWI = self.conv1d(attended(x_BTI, context), past(cache, "conv"))
        x_BTI = attended(activation(self.record.act)(x_BTI), context).astype(jnp.float32)
        y_BTI, state_BSI = self._scan(x_BTI, past(cache, "ssm"))
        y_BTI = self._shard(y_BTI + x_BTI * self.D[...].astype(jnp.float32)) * jax.nn.silu(gate_BTI)
        return self.out_proj(y_BTI.astype(self.policy.dtype)), kept(cache, conv=past_BWI, ssm=state_BSI)

    def _scan(self, x_BTI: jax.Array, state_BSI: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        record = self.record
        ends = [record.dt_rank, record.dt_rank + record.states]
        step_BTR, b_BTS, c_BTS = jnp.split(self.x_proj(x_BTI), ends, axis=-1)
        if record.norm is not None:
            parts = zip(NORMS, (step_BTR, b_BTS, c_BTS), strict=True)
            step_BTR, b_BTS, c_BTS = (getattr(self, name)(part) for name, part in parts)
        step_BTI = self._shard(jax.nn.softplus(self.dt_proj(step_BTR)))
        a_SI = -jnp.exp(self.A_log[...].astype(jnp.float32)).T
        if state_BSI is None:
            state_BSI = jnp.zeros((x_BTI.shape[0], record.states, record.inner), jnp.float32)
        return selective_scan(x_BTI, step_BTI, a_SI, b_BTS, c_BTS, state_BSI)

    def _shard(self, x_BTI: jax.Array) -> jax.Array:
        """Splits `x` by channels but not by tokens: the recurrence goes through all tokens in order."""
        return self.policy.shard(x_BTI, self.policy.axes.batch_axis, None, self.policy.axes.mlp_axis)
