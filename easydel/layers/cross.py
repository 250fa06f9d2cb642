"""Attention of a decoder to an encoder's output."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from easydel.layers.context import Context
from easydel.layers.kv_cache import KVCache
from easydel.layers.linear import Linear
from easydel.ops.attend import Scores, attend
from easydel.policy import ATTENTION_OUTPUT, Policy

# B batch, T decoder tokens, S encoder tokens, D model, N heads, K kv heads, C head channels


@dataclass(frozen=True)
class CrossAttention:
    """Every decoder token sees every real token of the encoder; `scale` defaults to head_dim ** -0.5."""

    heads: int
    kv_heads: int
    head_dim: int
    bias: bool = False
    out_bias: bool = False
    scale: float | None = None

    def build(self, features: int, policy: Policy) -> CrossAttentionLayer:
        return CrossAttentionLayer(self, features, policy)


class CrossAttentionLayer(nnx.Module):
    """Called with what earlier calls returned as keys and values, or None: then they are made of `context.cross`."""

    def __init__(self, record: CrossAttention, features: int, policy: Policy):
        wide, narrow = record.heads * record.head_dim, record.kv_heads * record.head_dim
        self.q_proj = Linear(features, wide, policy, bias=record.bias)
        self.k_proj = Linear(features, narrow, policy, bias=record.bias)
        self.v_proj = Linear(features, narrow, policy, bias=record.bias)
        self.o_proj = Linear(wide, features, policy, bias=record.out_bias)
        self.record, self.policy = record, policy

    def __call__(self, x_BTD: jax.Array, context: Context, kept: KVCache | None) -> tuple[jax.Array, KVCache]:
        record, cross = self.record, context.cross
        assert cross is not None
        if cross.states_BSD is not None:
            kept = self.keys_and_values(cross.states_BSD)
        assert kept is not None
        q_BTNC = self.policy.shard_heads(self._heads(self.q_proj(x_BTD)))
        scale = record.head_dim**-0.5 if record.scale is None else record.scale
        scores = Scores(scale, causal=False, precision=self.policy.precision)
        out_BTNC = attend(q_BTNC, kept["k"], kept["v"], scores, valid_BS=cross.valid_BS, mesh=self.policy.mesh)
        out_BTNC = checkpoint_name(self.policy.shard_heads(out_BTNC), ATTENTION_OUTPUT)
        return self.o_proj(out_BTNC.reshape(*x_BTD.shape[:2], -1)), kept

    def keys_and_values(self, states_BSD: jax.Array) -> KVCache:
        """[B, K, S, C] each; they depend on the encoder alone and serve every step of a generation."""
        projected = {"k": self.k_proj(states_BSD), "v": self.v_proj(states_BSD)}
        shard = self.policy.shard_heads
        return {name: shard(self._heads(part), kv=True).swapaxes(1, 2) for name, part in projected.items()}

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], -1, self.record.head_dim)
