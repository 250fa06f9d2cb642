"""Multi-head attention with grouped keys and values, and the kinds of position it can know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from easydel.layers.context import Context, counted
from easydel.layers.kv_cache import KVCache, places, update
from easydel.layers.linear import Linear
from easydel.layers.norm import AnyNorm, Norm
from easydel.layers.rope import Rope
from easydel.ops.attend import Bias, Scores, attend
from easydel.policy import ATTENTION_OUTPUT, Policy

# B batch, T tokens of this call, S key slots, D model, N heads, K kv heads, C head channels


@dataclass(frozen=True)
class QKNorm:
    """Norms on queries and keys: over each head's channels, or (`whole`) over all heads at once (OLMo 2).

    The scale is one for all heads, or with `per_head` each head has its own (Cohere). With `rotated` they come after
    the rope (Hunyuan).
    """

    norm: AnyNorm
    whole: bool = False
    per_head: bool = False
    rotated: bool = False

    def build(self, heads: int, head_dim: int, policy: Policy) -> Norm:
        if self.whole:
            return self.norm.build(heads * head_dim, policy)
        return self.norm.build((heads, head_dim) if self.per_head else head_dim, policy)


@dataclass(frozen=True)
class ALiBi:
    """Scores fall linearly with distance, steeper for some heads (Press et al. 2021, arXiv:2108.12409).

    `max_bias` is 8 in the paper and sets the steepest slope of a power-of-two head count, 2 ** (-max_bias / heads).
    """

    heads: int
    max_bias: float = 8.0

    def slopes(self) -> np.ndarray:
        """One slope per head; a head count that is no power of two takes every other slope of the next one."""
        power = 1 << (self.heads - 1).bit_length()
        steps = 2.0 ** (-self.max_bias / power * np.arange(1, power + 1))
        if power == self.heads:
            return steps.astype(np.float32)
        return np.concatenate([steps[1::2], steps[::2]])[: self.heads].astype(np.float32)

    def bias(self, context: Context, length: int) -> jax.Array:
        """[B, N, 1, S]: slope times key position; the query's part would cancel in the softmax."""
        return jnp.asarray(self.slopes())[None, :, None, None] * self.positions(context, length)[:, None, None, :]

    def positions(self, context: Context, length: int) -> jax.Array:
        """[B or 1, S] of the keys in float32; they count attended tokens only, in each segment anew."""
        valid_BS, starts_BS = context.valid_BS, context.starts_BT
        if valid_BS is None:
            positions = jnp.arange(length)[None]
            return (positions if starts_BS is None else positions - starts_BS).astype(jnp.float32)
        return (counted(valid_BS, starts_BS) * valid_BS).astype(jnp.float32)


@dataclass(frozen=True)
class GrowingScale:
    """A scale that grows with the query's position, lest weights flatten as keys become many (Llama 4, Meta 2025).

    It is `start` * (1 + `growth` * ln(1 + floor(position / `length`))); `start` defaults to head_dim ** -0.5.
    """

    growth: float
    length: float
    start: float | None = None

    def factors(self, positions_BT: jax.Array) -> jax.Array:
        """What `start` is multiplied with for queries at these positions, [B, T] in float32."""
        return 1 + self.growth * jnp.log1p(jnp.floor(positions_BT.astype(jnp.float32) / self.length))


@dataclass(frozen=True)
class Attention:
    """Softmax attention. `scale` defaults to head_dim ** -0.5, `window` counts the query itself.

    `position` None leaves order to the mask alone (NoPE) or to embeddings added before the first layer.
    `clip` limits q, k and v to [-clip, clip] (DBRX, OLMo); `sinks` adds a learned logit per head (GPT-OSS).
    """

    name: ClassVar[str] = "self_attn"
    heads: int
    kv_heads: int
    head_dim: int
    position: Rope | ALiBi | None = None
    bias: bool = False
    out_bias: bool = False
    scale: float | GrowingScale | None = None
    window: int | None = None
    softcap: float | None = None
    qk_norm: QKNorm | None = None
    clip: float | None = None
    sinks: bool = False

    def build(self, features: int, policy: Policy) -> AttentionLayer:
        return AttentionLayer(self, features, policy)

    @property
    def kept_window(self) -> int | None:
        """How much of the past a cache has to keep; None: all. ALiBi counts positions from the first token on."""
        return None if isinstance(self.position, ALiBi) else self.window

    def cache(self, batch: int, length: int, dtype: jnp.dtype) -> KVCache:
        """Empty keys and values, [batch, kv_heads, places, head_dim] each."""
        shape = (batch, self.kv_heads, places(length, self.kept_window), self.head_dim)
        return {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)}


class AttentionLayer(nnx.Module):
    def __init__(self, record: Attention, features: int, policy: Policy):
        wide, narrow = record.heads * record.head_dim, record.kv_heads * record.head_dim
        self.q_proj = Linear(features, wide, policy, bias=record.bias)
        self.k_proj = Linear(features, narrow, policy, bias=record.bias)
        self.v_proj = Linear(features, narrow, policy, bias=record.bias)
        self.o_proj = Linear(wide, features, policy, bias=record.out_bias)
        if record.qk_norm is not None:
            self.q_norm = record.qk_norm.build(record.heads, record.head_dim, policy)
            self.k_norm = record.qk_norm.build(record.kv_heads, record.head_dim, policy)
        self.sinks = nnx.Param(jax.ShapeDtypeStruct((record.heads,), policy.param_dtype)) if record.sinks else None
        self.record, self.policy = record, policy

    def __call__(self, x_BTD: jax.Array, context: Context, cache: KVCache | None) -> tuple[jax.Array, KVCache | None]:
        q_BTNC, k_BTKC, v_BTKC = self._project(x_BTD)
        if isinstance(self.record.position, Rope):
            angles = context.angles(self.record.position)
            q_BTNC, k_BTKC = (self.record.position.rotate(part, angles) for part in (q_BTNC, k_BTKC))
        if self.record.qk_norm is not None and self.record.qk_norm.rotated:
            q_BTNC, k_BTKC = self.q_norm(q_BTNC), self.k_norm(k_BTKC)
        if isinstance(self.record.scale, GrowingScale):
            q_BTNC = q_BTNC * self.record.scale.factors(context.positions_BT)[..., None, None].astype(q_BTNC.dtype)
        k_BKTC, v_BKTC = k_BTKC.swapaxes(1, 2), v_BTKC.swapaxes(1, 2)
        cache, seen = update(cache, k_BKTC, v_BKTC, context, self.scores(context))
        out_BTNC = attend(
            q_BTNC,
            seen.k_BKSC,
            seen.v_BKSC,
            seen.scores,
            offset=seen.offset,
            valid_BS=seen.valid_BS,
            bias=self._bias(context, seen.k_BKSC.shape[2]),
            sinks_N=None if self.sinks is None else self.sinks[...],
            starts_BT=context.starts_BT,
            mesh=self.policy.mesh,
            ring=self.policy.ring,
        )
        out_BTNC = checkpoint_name(self.policy.shard_heads(out_BTNC), ATTENTION_OUTPUT)
        return self.o_proj(out_BTNC.reshape(*x_BTD.shape[:2], -1)), cache

    def scores(self, context: Context) -> Scores:
        record = self.record
        scale = record.scale.start if isinstance(record.scale, GrowingScale) else record.scale
        scale = record.head_dim**-0.5 if scale is None else scale
        return Scores(scale, record.softcap, record.window, context.causal, self.policy.precision)

    def _project(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        q, k, v = self.q_proj(x_BTD), self.k_proj(x_BTD), self.v_proj(x_BTD)
        record, norm = self.record, self.record.qk_norm
        if norm is not None and norm.whole:
            q, k = self.q_norm(q), self.k_norm(k)
        if record.clip is not None:
            q, k, v = (jnp.clip(part, -record.clip, record.clip) for part in (q, k, v))
        q, k, v = (part.reshape(*part.shape[:2], -1, record.head_dim) for part in (q, k, v))
        if norm is not None and not norm.whole and not norm.rotated:
            q, k = self.q_norm(q), self.k_norm(k)
        shard = self.policy.shard_heads
        return shard(q), shard(k, kv=True), shard(v, kv=True)

    def _bias(self, context: Context, length: int) -> Bias | None:
        if isinstance(self.record.position, ALiBi):
            return self.record.position.bias(context, length)
        return context.bias
