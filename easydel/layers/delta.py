"""Linear attention by the gated delta rule (Yang et al. 2024, arXiv:2412.06464; Kimi 2025, arXiv:2510.26692)."""

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
from easydel.ops.delta import Tokens, delta_rule
from easydel.policy import Policy

# B batch, T length, D model, K key heads, N heads, C key channels, V value channels, W width of convolutions less one
State = dict[str, Cached]


@dataclass(frozen=True)
class DeltaNet(Part):
    """`heads` states of `key_dim` times `value_dim`; groups of them have one of `key_heads` queries and keys in common.

    Queries, keys and values go through convolutions over `width` tokens and `act`. What states answer is normed by head
    and multiplied by `gate_act` of a gate. With `negative`, the strengths of updates reach from 0 to 2, not to 1. With
    `by_channel` each channel of a key decays by itself (KDA). Decays and the gate come from latents of a `rank`, if one
    is given. `least` is the lowest logarithm of a decay, if there is one: then sigmoids of the steps are its shares.
    """

    name: ClassVar[str] = "linear_attn"
    heads: int
    key_heads: int
    key_dim: int
    value_dim: int
    width: int
    act: str
    norm: RMSNorm
    gate_act: str = "silu"
    negative: bool = False
    by_channel: bool = False
    rank: int | None = None
    least: float | None = None

    @property
    def convolved(self) -> dict[str, int]:
        """Channels of queries, keys and values."""
        keys = self.key_heads * self.key_dim
        return {"q": keys, "k": keys, "v": self.heads * self.value_dim}

    def carries(self, tokens: int) -> str:
        return "the delta rule"

    def build(self, features: int, policy: Policy) -> DeltaNetLayer:
        return DeltaNetLayer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> State:
        """Returns the last inputs of the convolutions, and the states, in float32 as they are computed."""
        widths = {part: (batch, self.width - 1, channels) for part, channels in self.convolved.items()}
        inputs = {part: empty(shape, dtype, "batch", None, "mlp") for part, shape in widths.items()}
        shape = (batch, self.heads, self.key_dim, self.value_dim)
        return inputs | {"state": empty(shape, jnp.float32, "batch", "head", None, None)}


class DeltaNetLayer(nnx.Module):
    def __init__(self, record: DeltaNet, features: int, policy: Policy):
        values, latent = record.heads * record.value_dim, record.rank or features
        for part, channels in record.convolved.items():
            setattr(self, f"in_proj_{part}", Linear(features, channels, policy))
            setattr(self, f"{part}_conv1d", CausalConv(channels, record.width, policy, bias=False))
        decays = record.heads * (record.key_dim if record.by_channel else 1)
        if record.rank is not None:
            self.a_latent_proj = Linear(features, latent, policy)
            self.z_latent_proj = Linear(features, latent, policy)
        # a decay and a strength for each head: small, and states are products of them
        self.in_proj_a = Float32Linear(latent, decays, policy)
        self.in_proj_b = Float32Linear(features, record.heads, policy)
        self.in_proj_z = Linear(latent, values, policy)
        self.A_log = parameter((record.heads,), policy)
        self.dt_bias = parameter((decays,), policy)
        self.norm = record.norm.build(record.value_dim, policy)
        self.out_proj = Linear(values, features, policy)
        self.record, self.policy = record, policy

    def __call__(self, x_BTD: jax.Array, context: Context, cache: State | None) -> tuple[jax.Array, State | None]:
        record, (B, T) = self.record, x_BTD.shape[:2]
        tokens, inputs = self._tokens(x_BTD, context, cache)
        state_BNCV = past(cache, "state")
        if state_BNCV is None:
            state_BNCV = jnp.zeros((B, record.heads, record.key_dim, record.value_dim), jnp.float32)
        out_BTNV, state_BNCV = delta_rule(tokens, state_BNCV)
        gate_BTNV = self.in_proj_z(self._latent("z", x_BTD)).reshape(out_BTNV.shape).astype(jnp.float32)
        out_BTNV = self._by_heads(self.norm(out_BTNV) * activation(record.gate_act)(gate_BTNV))
        y_BTD = self.out_proj(out_BTNV.reshape(B, T, -1).astype(self.policy.dtype))
        return y_BTD, kept(cache, state=state_BNCV, **inputs)

    def _tokens(self, x_BTD: jax.Array, context: Context, cache: State | None) -> tuple[Tokens, dict[str, jax.Array]]:
        """What the tokens do to the states, and the inputs that the convolutions need for the next ones."""
        record, made, inputs = self.record, {}, {}
        for part in record.convolved:
            given = attended(getattr(self, f"in_proj_{part}")(x_BTD), context)
            given, inputs[part] = getattr(self, f"{part}_conv1d")(given, past(cache, part))
            channels = record.value_dim if part == "v" else record.key_dim
            by_head = activation(record.act)(given).astype(jnp.float32).reshape(*x_BTD.shape[:2], -1, channels)
            made[part] = self._by_heads(by_head)
        shared = record.heads // record.key_heads
        q_BTNC = jnp.repeat(_unit(made["q"]) * record.key_dim**-0.5, shared, axis=2)
        k_BTNC = jnp.repeat(_unit(made["k"]), shared, axis=2)
        beta_BTN = jax.nn.sigmoid(self.in_proj_b(x_BTD)) * (2.0 if record.negative else 1.0)
        log_decay_BTNA = self._log_decays(x_BTD, context)
        return Tokens(q_BTNC, k_BTNC, made["v"], log_decay_BTNA, attended(beta_BTN, context)), inputs

    def _log_decays(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """[B, T, N, 1], or [B, T, N, C] where each channel has its own: below zero, and zero for padding."""
        steps_BTE = self.in_proj_a(self._latent("a", x_BTD)) + self.dt_bias[...].astype(jnp.float32)
        steps_BTNA = steps_BTE.reshape(*x_BTD.shape[:2], self.record.heads, -1)
        rates_N1 = jnp.exp(self.A_log[...].astype(jnp.float32))[:, None]
        least = self.record.least
        free = (
            -rates_N1 * jax.nn.softplus(steps_BTNA) if least is None else least * jax.nn.sigmoid(rates_N1 * steps_BTNA)
        )
        return attended(free.reshape(steps_BTE.shape), context).reshape(free.shape)

    def _latent(self, name: str, x_BTD: jax.Array) -> jax.Array:
        return x_BTD if self.record.rank is None else getattr(self, f"{name}_latent_proj")(x_BTD)

    def _by_heads(self, x_BTNC: jax.Array) -> jax.Array:
        """Split by heads, and not by tokens: the recurrence goes through all of them in order."""
        axes = self.policy.logical_axes(("batch", None, "head", None))
        return self.policy.shard(x_BTNC, *axes)


def _unit(x: jax.Array) -> jax.Array:
    """Vectors of length 1."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
