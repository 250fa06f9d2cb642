"""Attention to the tokens nearby, except that some tokens see all others and are seen by all (Longformer: Beltagy et
al. 2020, arXiv:2004.05150)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from easydel.layers.attention import Heads
from easydel.layers.context import Context
from easydel.layers.local import Projected
from easydel.layers.part import HeadSizes, Part
from easydel.ops.attend import Around, Scores, attend
from easydel.ops.blocks import Beside, attend_blocks
from easydel.ops.chunked import switched
from easydel.ops.scores import MASKED
from easydel.policy import Policy

# B batch, T tokens, G places for marked tokens, Q queries of a block, K keys that a block sees, N heads, C channels
ROOM = (16, 256)  # marked tokens that programs are compiled for, besides as many as there are tokens


@dataclass(frozen=True)
class Marked(Part):
    """Attention to `radius` tokens on each side.

    Tokens that the input `global_attention_mask` marks are seen by all, and see all by projections of their own.
    """

    name: ClassVar[str] = "self_attn"
    heads: Heads
    radius: int

    def build(self, features: int, policy: Policy) -> MarkedLayer:
        return MarkedLayer(self, features, policy)

    def head_sizes(self) -> Iterable[HeadSizes]:
        return (HeadSizes(self.heads.count, self.heads.kv, self.heads.dim, self.radius + 1),)

    def reads(self) -> Iterable[str]:
        yield "marked_BT"

    def looks_ahead(self) -> bool:
        return True


class MarkedLayer(Projected):
    def __init__(self, record: Marked, features: int, policy: Policy):
        super().__init__(record.heads, features, policy)
        self.marked = Projected(record.heads, features, policy, output=False)
        self.record = record

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        parts = (self.queries(x_BTD), *self.keys(x_BTD))
        if context.marked_BT is None:
            return self.output(self._nearby(*parts, context.valid_BT, None)), cache
        marked_BT, T = context.marked_BT, x_BTD.shape[1]
        # most calls mark one token, and some a question: only they pay for their number
        sizes = [*(size for size in ROOM if size < T), T]
        places_BT = jnp.argsort(~marked_BT, axis=1, stable=True)

        def with_room(size: int) -> jax.Array:
            return self._with_marked(x_BTD, *parts, context, places_BT[:, :size])

        return self.output(switched(with_room, jnp.max(jnp.sum(marked_BT, axis=1)), sizes)), cache

    def _nearby(
        self,
        q_BTNC: jax.Array,
        k_BTNC: jax.Array,
        v_BTNC: jax.Array,
        valid_BT: jax.Array | None,
        beside: Beside | None,
    ) -> jax.Array:
        size = self.record.radius
        away_QK = jnp.arange(-size, 2 * size) - jnp.arange(size)[:, None]
        return attend_blocks(
            q_BTNC,
            k_BTNC,
            v_BTNC,
            size=size,
            around=1,
            scale=self.heads.dim**-0.5,
            bias_NQK=jnp.where(jnp.abs(away_QK) <= size, 0.0, MASKED)[None],
            valid_BT=valid_BT,
            beside=beside,
            precision=self.policy.precision,
        )

    def _with_marked(
        self,
        x_BTD: jax.Array,
        q_BTNC: jax.Array,
        k_BTNC: jax.Array,
        v_BTNC: jax.Array,
        context: Context,
        places_BG: jax.Array,
    ) -> jax.Array:
        """Returns all tokens' values, where the marked ones are the first of `places_BG`."""
        marked_BT, valid_BT = context.marked_BT, context.valid_BT
        assert marked_BT is not None
        real_BG = jnp.take_along_axis(marked_BT, places_BG, axis=1)
        there = places_BG[:, :, None, None]
        k_BGNC, v_BGNC = (jnp.take_along_axis(part, there, axis=1) for part in (k_BTNC, v_BTNC))
        beside = Beside(k_BGNC, v_BGNC, jnp.where(real_BG, 0.0, MASKED)[:, None, None])
        others_BT = ~marked_BT if valid_BT is None else valid_BT & ~marked_BT
        out_BTNC = self._nearby(q_BTNC, k_BTNC, v_BTNC, others_BT, beside)
        q_BGNC = self.marked.queries(jnp.take_along_axis(x_BTD, places_BG[:, :, None], axis=1))
        k_BNTC, v_BNTC = (part.swapaxes(1, 2) for part in self.marked.keys(x_BTD))
        scores = Scores(self.heads.dim**-0.5, None, Around(), self.policy.precision)
        own_BGNC = attend(q_BGNC, k_BNTC, v_BNTC, scores, valid_BS=valid_BT, mesh=self.policy.mesh)
        own_BGNC = jnp.where(real_BG[..., None, None], own_BGNC, jnp.take_along_axis(out_BTNC, there, axis=1))
        return out_BTNC.at[jnp.arange(len(out_BTNC))[:, None], places_BG].set(own_BGNC)
