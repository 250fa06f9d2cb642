"""Attention to keys and values that short convolutions made (Thinking Machines Lab 2026, Inkling)."""

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
from easydel.layers.kv_cache import empty_keys, update
from easydel.layers.linear import Linear
from easydel.layers.norm import AnyNorm, L2Clip
from easydel.layers.part import HeadSizes, Part
from easydel.layers.position import LogGrowth
from easydel.layers.residual_conv import ResidualConv, TokenConv
from easydel.layers.token_bias import TokenBias
from easydel.ops.attend import Bias, Causal, Scores, attend
from easydel.policy import ATTENTION_OUTPUT, Policy

# B batch, T tokens of this call, D model, N heads, K kv heads, C head channels, E channels of all heads, W profiles


@dataclass(frozen=True)
class ConvAttention(Part):
    """Attention whose keys and values go through `conv` before their norms, with biases instead of positions.

    Queries and keys have norms or limits of their lengths; a limit of queries has a learned scale. `growth` multiplies
    queries and the weights of their biases. With `gated` a projection of the input is a gate on the output, and another
    one sinks: a logit per head and query that takes weight but adds no value. The input may be three: that of queries,
    of keys, and of values.
    """

    name: ClassVar[str] = "self_attn"
    heads: Heads
    conv: ResidualConv | TokenConv
    bias: TokenBias
    q_norm: AnyNorm | L2Clip
    k_norm: AnyNorm | L2Clip
    scale: float
    v_norm: AnyNorm | None = None
    sight: Causal = Causal()
    growth: LogGrowth | None = None
    gated: bool = False

    def carries(self, tokens: int) -> str:
        return "attention with convolutions"

    def build(self, features: int, policy: Policy) -> ConvAttentionLayer:
        return ConvAttentionLayer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, Any]:
        """Returns empty keys and values of all slots, which biases need, and the convolutions' last inputs."""
        heads, wide = self.heads, self.heads.kv * self.heads.dim
        convs = {f"{name}_conv": self.conv.cache(batch, wide, dtype) for name in "kv"}
        return empty_keys(batch, length, heads.kv, (heads.dim, heads.dim), None, dtype) | convs

    def head_sizes(self) -> Iterable[HeadSizes]:
        return (HeadSizes(self.heads.count, self.heads.kv, self.heads.dim, self.sight.window),)


class ConvAttentionLayer(nnx.Module):
    def __init__(self, record: ConvAttention, features: int, policy: Policy):
        heads = record.heads
        wide, narrow = heads.count * heads.dim, heads.kv * heads.dim
        self.q_proj = Linear(features, wide, policy)
        self.k_proj, self.v_proj = (Linear(features, narrow, policy) for _ in "kv")
        self.k_conv, self.v_conv = (record.conv.build(narrow, features, policy) for _ in "kv")
        self.token_bias = record.bias.build(heads.count, features, policy)
        by_head = isinstance(record.q_norm, L2Clip)
        self.q_norm = record.q_norm.build((heads.count, heads.dim) if by_head else heads.dim, policy)
        self.k_norm = record.k_norm.build(heads.dim, policy)
        self.v_norm = None if record.v_norm is None else record.v_norm.build(heads.dim, policy)
        self.gate_proj = Linear(features, wide, policy) if record.gated else None
        self.sink_proj = Linear(features, heads.count, policy) if record.gated else None
        self.o_proj = Linear(wide, features, policy)
        self.record, self.policy = record, policy

    def __call__(
        self, x: jax.Array | tuple[jax.Array, jax.Array, jax.Array], context: Context, cache: Any
    ) -> tuple[jax.Array, Any]:
        x_BTD, k_read_BTD, v_read_BTD = x if isinstance(x, tuple) else (x, x, x)
        states: Any = {"k_conv": None, "v_conv": None} if cache is None else cache
        k_BTE, k_state = self.k_conv(self.k_proj(k_read_BTD), k_read_BTD, context, states["k_conv"])
        v_BTE, v_state = self.v_conv(self.v_proj(v_read_BTD), v_read_BTD, context, states["v_conv"])
        q_BTNC = self.q_norm(self._heads(self.q_proj(x_BTD)))
        k_BTKC, v_BTKC = self.k_norm(self._heads(k_BTE, kv=True)), self._heads(v_BTE, kv=True)
        v_BTKC = v_BTKC if self.v_norm is None else self.v_norm(v_BTKC)
        keys = None if cache is None else {name: cache[name] for name in "kv"}
        scores = Scores(self.record.scale, sight=self.record.sight, precision=self.policy.precision)
        keys, seen = update(keys, k_BTKC.swapaxes(1, 2), v_BTKC.swapaxes(1, 2), context, scores)
        mix_BTNW = self.token_bias.mix(x_BTD)
        if self.record.growth is not None:
            factors_BT11 = self.record.growth.factors(context.positions_BT)[..., None, None]
            q_BTNC, mix_BTNW = ((part * factors_BT11).astype(part.dtype) for part in (q_BTNC, mix_BTNW))
        bias, sinks_N = self._bias(x_BTD, mix_BTNW, seen.k_BKSC.shape[2], context)
        given: Any = {"bias": bias, "sinks_N": sinks_N, "mesh": self.policy.mesh, "ring": self.policy.ring}
        out_BTNC = attend(q_BTNC, seen.k_BKSC, seen.v_BKSC, seen.scores, **seen.masks(), **given)
        out_BTE = checkpoint_name(self.policy.shard_heads(out_BTNC), ATTENTION_OUTPUT).reshape(*x_BTD.shape[:2], -1)
        if self.gate_proj is not None:
            out_BTE = out_BTE * jax.nn.sigmoid(self.gate_proj(x_BTD))
        cache = None if cache is None or keys is None else keys | {"k_conv": k_state, "v_conv": v_state}
        return self.o_proj(out_BTE), cache

    def _heads(self, x_BTE: jax.Array, *, kv: bool = False) -> jax.Array:
        return self.policy.shard_heads(x_BTE.reshape(*x_BTE.shape[:2], -1, self.record.heads.dim), kv=kv)

    def _bias(
        self, x_BTD: jax.Array, mix_BTNW: jax.Array, slots: int, context: Context
    ) -> tuple[Bias, jax.Array | None]:
        """Returns the bias of scores, and sinks' logits: of 0, if each query's own is taken from all its scores."""
        own = self.token_bias.bias(mix_BTNW, slots, context.offset)
        if self.sink_proj is None:
            return own, None
        sinks_BTN = self.sink_proj(x_BTD).astype(jnp.float32)

        def bias(start: jax.Array | int, queries: int) -> jax.Array:
            sinks_BRN = jax.lax.dynamic_slice_in_dim(sinks_BTN, start, queries, axis=1)
            return own(start, queries) - sinks_BRN.swapaxes(1, 2)[..., None]

        return bias, jnp.zeros(self.record.heads.count)
