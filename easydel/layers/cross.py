"""Attention of a decoder to an encoder's output."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from easydel.layers.context import Context
from easydel.layers.kv_cache import KVCache
from easydel.layers.linear import Linear
from easydel.layers.part import Cached, HeadSizes, Part
from easydel.ops.attend import Around, Scores, attend
from easydel.policy import ATTENTION_OUTPUT, Policy

# B batch, T decoder tokens, S encoder tokens, D model, N heads, K kv heads, C head channels


@dataclass(frozen=True)
class CrossAttention(Part):
    """Attention in which every decoder token sees every real token of the encoder.

    `scale` defaults to head_dim ** -0.5. `biased` names the projections with a bias, some of "qkvo". `states` is the
    encoder's width, if it differs from the decoder's.
    """

    name: ClassVar[str] = "cross_attn"
    heads: int
    kv_heads: int
    head_dim: int
    biased: str = ""
    scale: float | None = None
    softcap: float | None = None
    states: int | None = None

    def build(self, features: int, policy: Policy) -> CrossAttentionLayer:
        return CrossAttentionLayer(self, features, policy)

    def is_fresh(self, cache: Any) -> bool:
        return cache is None

    def head_sizes(self) -> Iterable[HeadSizes]:
        return (HeadSizes(self.heads, self.kv_heads, self.head_dim),)


class CrossAttentionLayer(nnx.Module):
    """Attends with the keys and values that an earlier call returned, or (None) with new ones from `context.cross`."""

    def __init__(self, record: CrossAttention, features: int, policy: Policy):
        wide, narrow = record.heads * record.head_dim, record.kv_heads * record.head_dim
        states = record.states or features
        self.q_proj = Linear(features, wide, policy, bias="q" in record.biased)
        self.k_proj = Linear(states, narrow, policy, bias="k" in record.biased)
        self.v_proj = Linear(states, narrow, policy, bias="v" in record.biased)
        self.o_proj = Linear(wide, features, policy, bias="o" in record.biased)
        self.record, self.policy = record, policy

    def __call__(self, x_BTD: jax.Array, context: Context, kept: KVCache | None) -> tuple[jax.Array, Any]:
        record, cross = self.record, context.cross
        assert cross is not None
        if cross.states_BSD is not None:
            kept = self.keys_and_values(cross.states_BSD)
        assert kept is not None
        q_BTNC = self.policy.shard_heads(self._heads(self.q_proj(x_BTD)))
        scale = record.head_dim**-0.5 if record.scale is None else record.scale
        scores = Scores(scale, record.softcap, Around(), self.policy.precision)
        k_BKSC, v_BKSC = kept["k"].array, kept["v"].array
        out_BTNC = attend(q_BTNC, k_BKSC, v_BKSC, scores, valid_BS=cross.valid_BS, mesh=self.policy.mesh)
        out_BTNC = checkpoint_name(self.policy.shard_heads(out_BTNC), ATTENTION_OUTPUT)
        return self.o_proj(out_BTNC.reshape(*x_BTD.shape[:2], -1)), kept

    def keys_and_values(self, states_BSD: jax.Array) -> KVCache:
        """Returns keys and values [B, K, S, C]. They depend on the encoder alone and serve every generated token."""
        projected = {"k": self.k_proj(states_BSD), "v": self.v_proj(states_BSD)}
        shard, axes = self.policy.shard_heads, ("batch", "kv_head", None, "head_dim")
        heads = {name: shard(self._heads(part), kv=True).swapaxes(1, 2) for name, part in projected.items()}
        return {name: Cached(part, axes) for name, part in heads.items()}

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], -1, self.record.head_dim)
