"""Lightning attention (Qin et al. 2024, arXiv:2405.17381): linear, with decays that are not learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from easydel.layers.activations import activation
from easydel.layers.context import Context
from easydel.layers.linear import Linear
from easydel.layers.norm import RMSNorm
from easydel.layers.part import Cached, Part, empty
from easydel.layers.recurrent import attended, kept, past
from easydel.ops.delta import Tokens, delta_rule
from easydel.policy import Policy

# B batch, T length, D model, N heads, C head channels, E all heads' channels
State = dict[str, Cached]


@dataclass(frozen=True)
class Lightning(Part):
    """`heads` sums of products of keys and values, [dim, dim] each, that decay at rates of their own.

    The rates are those of ALiBi's slopes times `fading`. `act` acts on queries, keys and values. `norm` is that of all
    heads together, before they are multiplied by the sigmoid of a gate.
    """

    name: ClassVar[str] = "linear_attn"
    heads: int
    dim: int
    act: str
    norm: RMSNorm
    fading: float

    def carries(self, tokens: int) -> str:
        return "lightning attention"

    def build(self, features: int, policy: Policy) -> LightningLayer:
        return LightningLayer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> State:
        """Returns the sums, in float32 as they are computed."""
        return {"state": empty((batch, self.heads, self.dim, self.dim), jnp.float32, "batch", "head", None, None)}

    @property
    def log_decays(self) -> np.ndarray:
        """[N], below zero."""
        return -self.fading * 2.0 ** (-8 * np.arange(1, self.heads + 1) / self.heads)


class LightningLayer(nnx.Module):
    def __init__(self, record: Lightning, features: int, policy: Policy):
        channels = record.heads * record.dim
        self.in_proj_q = Linear(features, channels, policy)
        self.in_proj_k = Linear(features, channels, policy)
        self.in_proj_v = Linear(features, channels, policy)
        self.in_proj_z = Linear(features, channels, policy)
        self.norm = record.norm.build(channels, policy)
        self.out_proj = Linear(channels, features, policy)
        self.record, self.policy = record, policy

    def __call__(self, x_BTD: jax.Array, context: Context, cache: State | None) -> tuple[jax.Array, State | None]:
        record, (B, T) = self.record, x_BTD.shape[:2]
        projections = (self.in_proj_q, self.in_proj_k, self.in_proj_v)
        q_BTNC, k_BTNC, v_BTNC = (self._heads(projection(x_BTD), context) for projection in projections)
        decays_BTN = attended(jnp.broadcast_to(record.log_decays.astype(np.float32), (B, T, record.heads)), context)
        state_BNCC = past(cache, "state")
        if state_BNCC is None:
            state_BNCC = jnp.zeros((B, record.heads, record.dim, record.dim), jnp.float32)
        out_BTNC, state_BNCC = delta_rule(Tokens(q_BTNC, k_BTNC, v_BTNC, decays_BTN[..., None], None), state_BNCC)
        y_BTE = self.norm(out_BTNC.reshape(B, T, -1)) * jax.nn.sigmoid(self.in_proj_z(x_BTD))
        return self.out_proj(y_BTE.astype(self.policy.dtype)), kept(cache, state=state_BNCC)

    def _heads(self, x_BTE: jax.Array, context: Context) -> jax.Array:
        """[B, T, N, C], split by heads, and not by tokens: the recurrence goes through all of them in order."""
        x_BTE = attended(activation(self.record.act)(x_BTE), context).astype(jnp.float32)
        x_BTNC = x_BTE.reshape(*x_BTE.shape[:2], self.record.heads, -1)
        return self.policy.shard(x_BTNC, *self.policy.logical_axes(("batch", None, "head", None)))
