"""Attention to a token's own block, and to global tokens that layers carry along (PEGASUS-X: Phang et al. 2022,
arXiv:2208.04347)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.layers.attention import Heads
from easydel.layers.block import Flow
from easydel.layers.context import Context
from easydel.layers.linear import Embedding
from easydel.layers.local import Projected
from easydel.layers.norm import AnyNorm
from easydel.layers.part import HeadSizes, Part
from easydel.ops.attend import Around, Scores, attend
from easydel.ops.blocks import Beside, attend_blocks
from easydel.policy import Policy

# B batch, T tokens, G global tokens, S both, N heads, C head channels, D model


@dataclass(frozen=True)
class GlobalTokens:
    """A stream with `count` learned vectors in front of a row's tokens, which end with the last layer."""

    count: int

    def build(self, features: int, policy: Policy) -> GlobalTokensStream:
        return GlobalTokensStream(self, features, policy)


class GlobalTokensStream(nnx.Module):
    def __init__(self, record: GlobalTokens, features: int, policy: Policy):
        self.tokens = Embedding(record.count, features, policy)
        self.record = record

    def open(self, x_BTD: jax.Array, embedded: Any) -> Flow:
        x_GD = self.tokens(jnp.arange(self.record.count))
        return {"x": jnp.concatenate([jnp.broadcast_to(x_GD, (len(x_BTD), *x_GD.shape)), x_BTD], axis=1)}

    def close(self, flow: Flow) -> jax.Array:
        return flow["x"][:, self.record.count :]


@dataclass(frozen=True)
class OwnBlock(Part):
    """Attention of tokens to their block of `size`, and to the `beside` global tokens in front, which see everything.

    Blocks begin at a row's first token that is no padding, or (`staggered`) half a block before it. `norm` comes before
    the projections; global tokens have one of their own.
    """

    name: ClassVar[str] = "self_attn"
    heads: Heads
    size: int
    beside: int
    norm: AnyNorm
    staggered: bool = False

    def build(self, features: int, policy: Policy) -> OwnBlockLayer:
        return OwnBlockLayer(self, features, policy)

    def head_sizes(self) -> Iterable[HeadSizes]:
        return (HeadSizes(self.heads.count, self.heads.kv, self.heads.dim, self.size),)

    def looks_ahead(self) -> bool:
        return True


class OwnBlockLayer(Projected):
    def __init__(self, record: OwnBlock, features: int, policy: Policy):
        super().__init__(record.heads, features, policy)
        self.norm = record.norm.build(features, policy)
        self.global_norm = record.norm.build(features, policy)
        self.record = record

    def __call__(self, x_BSD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        count, scale = self.record.beside, self.heads.dim**-0.5
        x_BGD, x_BTD = self.global_norm(x_BSD[:, :count]), self.norm(x_BSD[:, count:])
        places_BT, valid_BT = None, context.valid_BT
        if valid_BT is not None:
            places_BT = (jnp.argmax(valid_BT, axis=1)[:, None] + jnp.arange(valid_BT.shape[1])) % valid_BT.shape[1]
            x_BTD = jnp.take_along_axis(x_BTD, places_BT[..., None], axis=1)
            valid_BT = jnp.take_along_axis(valid_BT, places_BT, axis=1)
        x_BSD = jnp.concatenate([x_BGD, x_BTD], axis=1)
        q_BSNC, (k_BSNC, v_BSNC) = self.queries(x_BSD), self.keys(x_BSD)
        valid_BS = None if valid_BT is None else jnp.pad(valid_BT, ((0, 0), (count, 0)), constant_values=True)
        k_BNSC, v_BNSC = k_BSNC.swapaxes(1, 2), v_BSNC.swapaxes(1, 2)
        scores = Scores(scale, None, Around(), self.policy.precision)
        out_BGNC = attend(q_BSNC[:, :count], k_BNSC, v_BNSC, scores, valid_BS=valid_BS, mesh=self.policy.mesh)
        out_BTNC = self._in_blocks(q_BSNC, k_BSNC, v_BSNC, valid_BT)
        if places_BT is not None:
            out_BTNC = jnp.take_along_axis(out_BTNC, jnp.argsort(places_BT, axis=1)[..., None, None], axis=1)
        return self.output(jnp.concatenate([out_BGNC, out_BTNC], axis=1)), cache

    def _in_blocks(
        self, q_BSNC: jax.Array, k_BSNC: jax.Array, v_BSNC: jax.Array, valid_BT: jax.Array | None
    ) -> jax.Array:
        count, size = self.record.beside, self.record.size
        front = size // 2 if self.record.staggered else 0
        if valid_BT is None:
            valid_BT = jnp.ones((len(q_BSNC), q_BSNC.shape[1] - count), bool)

        def moved(part: jax.Array) -> jax.Array:
            return jnp.pad(part, [(0, 0), (front, 0), *[(0, 0)] * (part.ndim - 2)])

        out_BTNC = attend_blocks(
            *(moved(part[:, count:]) for part in (q_BSNC, k_BSNC, v_BSNC)),
            size=size,
            around=0,
            scale=self.heads.dim**-0.5,
            valid_BT=moved(valid_BT),
            beside=Beside(k_BSNC[:, :count], v_BSNC[:, :count]),
            precision=self.policy.precision,
        )
        return out_BTNC[:, front:]
