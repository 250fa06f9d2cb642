"""Attention of an encoder to the tokens nearby, and to summaries of all tokens (LongT5: Guo et al. 2021,
arXiv:2112.07916)."""

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
from easydel.layers.linear import Linear
from easydel.layers.norm import AnyNorm
from easydel.layers.part import HeadSizes, Part
from easydel.layers.relative import RelativeBias, RelativeBiasTable
from easydel.layers.shared import shared_module
from easydel.ops.blocks import Beside, attend_blocks
from easydel.ops.scores import MASKED
from easydel.policy import ATTENTION_OUTPUT, Policy

# B batch, T tokens, Q queries of a block, K keys that a block sees, G summaries, N heads, C head channels, D model


@dataclass(frozen=True)
class Summaries:
    """Normed sums of `size` tokens each, which every token attends to; `position` is a bias by their distance.

    Tokens at the end of a row that are too few for a summary belong to the last one.
    """

    size: int
    norm: AnyNorm
    position: RelativeBias


@dataclass(frozen=True)
class Local(Part):
    """Attention to `radius` tokens on each side, with a shared table of biases by relative position."""

    name: ClassVar[str] = "self_attn"
    heads: Heads
    radius: int
    position: RelativeBias
    scale: float
    summaries: Summaries | None = None

    def build(self, features: int, policy: Policy) -> LocalLayer:
        return LocalLayer(self, features, policy)

    def head_sizes(self) -> Iterable[HeadSizes]:
        return (HeadSizes(self.heads.count, self.heads.kv, self.heads.dim, self.radius + 1),)

    def shares(self) -> Iterable[tuple[str, Part]]:
        for position in (self.position, *([] if self.summaries is None else [self.summaries.position])):
            assert position.shared is not None
            yield position.shared, position

    def looks_ahead(self) -> bool:
        return True


class Projected(nnx.Module):
    """The projections of attention whose queries, keys and values have the same heads."""

    def __init__(self, heads: Heads, features: int, policy: Policy, *, output: bool = True):
        assert heads.count == heads.kv, "every head has keys of its own"
        width = heads.count * heads.dim
        self.q_proj = Linear(features, width, policy, bias="q" in heads.biased)
        self.k_proj = Linear(features, width, policy, bias="k" in heads.biased)
        self.v_proj = Linear(features, width, policy, bias="v" in heads.biased)
        self.o_proj = Linear(width, features, policy, bias="o" in heads.biased) if output else None
        self.heads, self.policy = heads, policy

    def queries(self, x_BTD: jax.Array) -> jax.Array:
        return self._heads(self.q_proj(x_BTD))

    def keys(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns keys and values, [B, T, N, C] each."""
        return self._heads(self.k_proj(x_BTD), kv=True), self._heads(self.v_proj(x_BTD), kv=True)

    def output(self, out_BTNC: jax.Array) -> jax.Array:
        assert self.o_proj is not None
        out_BTNC = checkpoint_name(self.policy.shard_heads(out_BTNC), ATTENTION_OUTPUT)
        return self.o_proj(out_BTNC.reshape(*out_BTNC.shape[:2], -1))

    def _heads(self, x_BTE: jax.Array, *, kv: bool = False) -> jax.Array:
        return self.policy.shard_heads(x_BTE.reshape(*x_BTE.shape[:2], -1, self.heads.dim), kv=kv)


class LocalLayer(Projected):
    def __init__(self, record: Local, features: int, policy: Policy):
        super().__init__(record.heads, features, policy)
        self.summary_norm = None if record.summaries is None else record.summaries.norm.build(features, policy)
        self.record = record

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        record, size = self.record, self.record.radius + 1
        assert record.position.shared is not None
        away_QK = jnp.arange(-size, 2 * size) - jnp.arange(size)[:, None]
        bias_NQK = biases(shared_module(record.position.shared, context), away_QK)
        bias_NQK += jnp.where(jnp.abs(away_QK) <= record.radius, 0.0, MASKED)
        out_BTNC = attend_blocks(
            self.queries(x_BTD),
            *self.keys(x_BTD),
            size=size,
            around=1,
            scale=record.scale,
            bias_NQK=bias_NQK,
            valid_BT=context.valid_BT,
            beside=self._summaries(x_BTD, context),
            precision=self.policy.precision,
        )
        return self.output(out_BTNC), cache

    def _summaries(self, x_BTD: jax.Array, context: Context) -> Beside | None:
        summaries, (B, T) = self.record.summaries, x_BTD.shape[:2]
        if summaries is None or summaries.size > T:
            return None
        assert summaries.position.shared is not None
        assert self.summary_norm is not None
        count = T // summaries.size
        valid_BT = jnp.ones((B, T), bool) if context.valid_BT is None else context.valid_BT
        full_B1 = jnp.sum(valid_BT, axis=1, keepdims=True) // summaries.size
        own_BT = jnp.where(valid_BT, jnp.minimum((jnp.cumsum(valid_BT, axis=1) - 1) // summaries.size, full_B1 - 1), -1)
        sums_BGD = jnp.einsum(
            "BTG,BTD->BGD", jax.nn.one_hot(own_BT, count, dtype=x_BTD.dtype), x_BTD, precision=self.policy.precision
        )
        table = shared_module(summaries.position.shared, context)
        row_NP = biases(table, jnp.arange(-count, count + 1))
        masked_B11G = jnp.where(jnp.arange(count) < full_B1, 0.0, MASKED)[:, None, None]

        def cut(own: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(row_NP, count - own, count, axis=1)

        def bias(own_BQ: jax.Array) -> jax.Array:
            return jnp.moveaxis(jax.vmap(jax.vmap(cut))(own_BQ), 1, 2) + masked_B11G

        return Beside(*self.keys(self.summary_norm(sums_BGD)), bias, own_BT)


def biases(table: RelativeBiasTable, distance: jax.Array) -> jax.Array:
    """Returns the biases [N, ...] of distances, which are key position - query position."""
    return jnp.moveaxis(table.embedding[...].astype(jnp.float32)[table.record.bucket(distance)], -1, 0)
