"""Compressed convolutional attention (Figliolia et al. 2025, arXiv:2510.04476)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from easydel.layers.attention import Heads
from easydel.layers.context import Context
from easydel.layers.conv import CausalConv, GroupedConv
from easydel.layers.kv_cache import empty_keys, update
from easydel.layers.linear import Linear, parameter
from easydel.layers.part import Cached, HeadSizes, Part, empty
from easydel.layers.recurrent import attended, kept, past
from easydel.layers.rope import Rope
from easydel.ops.attend import Causal, Scores, attend
from easydel.policy import ATTENTION_OUTPUT, Policy

# B batch, T tokens of this call, W inputs before them, D model, N heads, K kv heads, G heads per kv head, C channels,
# E all channels of queries and keys
State = dict[str, Cached]


@dataclass(frozen=True)
class CCA(Part):
    """Attention whose queries and keys go through two convolutions, one per channel and then one per head.

    `widths` are the numbers of tokens that each covers. The means of a query and its key before them are added after
    them; then both get the length sqrt(channels), and keys a learned factor per head. Half of the value channels are
    made of the token, the others of the one before it. `features` are the model's.
    """

    name: ClassVar[str] = "self_attn"
    features: int
    heads: Heads
    position: Rope
    widths: tuple[int, int]
    sight: Causal = Causal()

    @property
    def before(self) -> int:
        """Number of earlier tokens that a query is made of."""
        return sum(self.widths) - 2

    @property
    def channels(self) -> int:
        """Channels of all queries and keys."""
        return (self.heads.count + self.heads.kv) * self.heads.dim

    def carries(self, tokens: int) -> str:
        return "attention with convolutions"

    def build(self, features: int, policy: Policy) -> CCALayer:
        return CCALayer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, Any]:
        """Returns empty keys and values, the last inputs of the convolutions, and the layer's last input."""
        heads = self.heads
        state = {"conv": empty((batch, self.before, self.channels), dtype, "batch", None, None)}
        state |= {"input": empty((batch, 1, self.features), dtype, "batch", None, None)}
        return empty_keys(batch, length, heads.kv, (heads.dim, heads.dim), self.sight.window, dtype) | state

    def ropes(self) -> Iterable[Rope]:
        yield self.position

    def head_sizes(self) -> Iterable[HeadSizes]:
        return (HeadSizes(self.heads.count, self.heads.kv, self.heads.dim, self.sight.window),)


class CCALayer(nnx.Module):
    def __init__(self, record: CCA, features: int, policy: Policy):
        heads, biased = record.heads, record.heads.biased
        wide, narrow = heads.count * heads.dim, heads.kv * heads.dim
        self.q_proj = Linear(features, wide, policy, bias="q" in biased)
        self.k_proj = Linear(features, narrow, policy, bias="k" in biased)
        self.own_v_proj = Linear(features, narrow // 2, policy, bias="v" in biased)
        self.last_v_proj = Linear(features, narrow // 2, policy, bias="v" in biased)
        self.conv_channels = CausalConv(record.channels, record.widths[0], policy, bias=True)
        self.conv_heads = GroupedConv(record.channels, heads.count + heads.kv, record.widths[1], policy)
        self.key_gain = parameter((heads.kv,), policy)
        self.o_proj = Linear(wide, features, policy, bias="o" in biased)
        self.record, self.policy = record, policy

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        record, x_BTD = self.record, attended(x_BTD, context)
        q_BTNC, k_BTKC, last_BWE = self._queries_and_keys(x_BTD, context, past(cache, "conv"))
        v_BTKC = self._values(x_BTD, past(cache, "input"))
        keys, state = (None, None) if cache is None else ({name: cache[name] for name in "kv"}, cache)
        scores = Scores(record.heads.dim**-0.5, sight=record.sight, precision=self.policy.precision)
        keys, seen = update(keys, k_BTKC.swapaxes(1, 2), v_BTKC.swapaxes(1, 2), context, scores)
        placed: Any = {"mesh": self.policy.mesh, "ring": self.policy.ring}
        out_BTNC = attend(q_BTNC, seen.k_BKSC, seen.v_BKSC, seen.scores, **seen.masks(), **placed)
        out_BTNC = checkpoint_name(self.policy.shard_heads(out_BTNC), ATTENTION_OUTPUT)
        if state is not None and keys is not None:
            own = {name: state[name] for name in ("conv", "input")}
            cache = keys | (kept(own, conv=last_BWE, input=x_BTD[:, -1:]) or {})
        return self.o_proj(out_BTNC.reshape(*x_BTD.shape[:2], -1)), cache

    def _queries_and_keys(
        self, x_BTD: jax.Array, context: Context, past_BWE: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns queries and keys, normed and rotated, and the convolutions' last inputs."""
        record, heads, (batch, length) = self.record, self.record.heads, x_BTD.shape[:2]
        q_BTE, k_BTE = (attended(projection(x_BTD), context) for projection in (self.q_proj, self.k_proj))
        if past_BWE is None:
            past_BWE = jnp.zeros((batch, record.before, record.channels), q_BTE.dtype)
        given_BSE = jnp.concatenate([past_BWE.astype(q_BTE.dtype), jnp.concatenate([q_BTE, k_BTE], -1)], axis=1)
        first = record.widths[0] - 1
        mixed_BTE = self.conv_heads(self.conv_channels(given_BSE[:, first:], given_BSE[:, :first])[0])
        q_BTKGC = q_BTE.reshape(batch, length, heads.kv, -1, heads.dim)
        mean_BTKGC = (q_BTKGC + k_BTE.reshape(batch, length, heads.kv, 1, heads.dim)) * 0.5
        means = (mean_BTKGC.reshape(batch, length, -1, heads.dim), jnp.mean(mean_BTKGC, axis=-2))
        parts = jnp.split(mixed_BTE, [heads.count * heads.dim], axis=-1)
        q_BTNC, k_BTKC = (lengthened(part.reshape(mean.shape) + mean) for part, mean in zip(parts, means, strict=True))
        k_BTKC = k_BTKC * self.key_gain[...].astype(k_BTKC.dtype)[:, None]
        angles = context.angles(record.position)
        q_BTNC = record.position.rotate(self.policy.shard_heads(q_BTNC), angles)
        k_BTKC = record.position.rotate(self.policy.shard_heads(k_BTKC, kv=True), angles)
        return q_BTNC, k_BTKC, given_BSE[:, length:]

    def _values(self, x_BTD: jax.Array, past_B1D: jax.Array | None) -> jax.Array:
        past_B1D = jnp.zeros_like(x_BTD[:, :1]) if past_B1D is None else past_B1D.astype(x_BTD.dtype)
        last_BTD = jnp.concatenate([past_B1D, x_BTD[:, :-1]], axis=1)
        v_BTE = jnp.concatenate([self.own_v_proj(x_BTD), self.last_v_proj(last_BTD)], axis=-1)
        return self.policy.shard_heads(v_BTE.reshape(*x_BTD.shape[:2], self.record.heads.kv, -1), kv=True)


def lengthened(x: jax.Array) -> jax.Array:
    """Returns `x` with the length sqrt(channels) over its last dimension; shorter than `eps` of its dtype counts so."""
    wide, eps = x.astype(jnp.float32), jnp.finfo(x.dtype).eps  # squares lose their last bits in 16 bits
    squares = jnp.maximum(jnp.sum(jnp.square(wide), axis=-1, keepdims=True), jnp.square(eps))
    return (wide * (x.shape[-1] ** 0.5 * jax.lax.rsqrt(squares))).astype(x.dtype)
