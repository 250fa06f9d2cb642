"""Attention of a decoder to itself and to an encoder's output at once, with one softmax over both (T5Gemma 2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from easydel.layers.attention import Attention, AttentionLayer
from easydel.layers.block import normed
from easydel.layers.context import Context, Cross
from easydel.layers.kv_cache import KVCache, Seen
from easydel.layers.part import Cached, HeadSizes, Part
from easydel.layers.rope import Rope
from easydel.ops.attend import Around, Select, attend
from easydel.ops.sight import order_seen
from easydel.policy import ATTENTION_OUTPUT, Policy

# B batch, T decoder tokens, S encoder tokens, R keys of the decoder, D model, N heads, K kv heads, C head channels


@dataclass(frozen=True)
class Merged(Part):
    """`own` attention, whose queries see every real token of the encoder too.

    Encoder and decoder tokens go through the same projections and norms. Keys of the encoder are not rotated.
    """

    name: ClassVar[str] = "self_attn"
    own: Attention

    def __post_init__(self) -> None:
        own = self.own
        assert own == Attention(own.heads, own.position, own.sight, own.weights, own.norms), "there is no code for more"
        assert isinstance(own.position, Rope | None)

    def build(self, features: int, policy: Policy) -> MergedLayer:
        return MergedLayer(self.own, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, Any]:
        """Returns empty keys and values of the decoder; the first call adds the encoder's."""
        return {"own": self.own.cache(batch, length, dtype), "cross": None}

    def is_fresh(self, cache: Any) -> bool:
        return cache["cross"] is None

    def ropes(self) -> Iterable[Rope]:
        return self.own.ropes()

    def head_sizes(self) -> Iterable[HeadSizes]:
        return self.own.head_sizes()

    def rewinds(self, length: int, end: int) -> int | None:
        return self.own.rewinds(length, end)


class MergedLayer(AttentionLayer):
    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        cross = context.cross
        assert cross is not None
        q_BTNC = self._queries(x_BTD, context)
        seen, own = self._seen(x_BTD, context, None if cache is None else cache["own"])
        kept = None if cache is None else cache["cross"]
        if cross.states_BSD is not None:
            kept = self._of_encoder(cross.states_BSD)
        assert kept is not None
        keys = {name: kept[name].array for name in "kv"}
        S, R = keys["k"].shape[2], seen.k_BKSC.shape[2]
        out_BTNC = attend(
            q_BTNC,
            jnp.concatenate([keys["k"].astype(seen.k_BKSC.dtype), seen.k_BKSC], axis=2),
            jnp.concatenate([keys["v"].astype(seen.v_BKSC.dtype), seen.v_BKSC], axis=2),
            self._scores(Around()),
            valid_BS=_valid(cross, seen, len(x_BTD), S),
            select=_order(seen, S, R),
            mesh=self.policy.mesh,
        )
        out_BTNC = checkpoint_name(self.policy.shard_heads(out_BTNC), ATTENTION_OUTPUT)
        y_BTD = self.o_proj(out_BTNC.reshape(*x_BTD.shape[:2], -1))
        return y_BTD, None if cache is None else {"own": own, "cross": kept}

    def _of_encoder(self, states_BSD: jax.Array) -> KVCache:
        """Returns keys and values [B, K, S, C] of the encoder's output."""
        heads, axes = (*states_BSD.shape[:2], -1, self.record.heads.dim), ("batch", "kv_head", None, "head_dim")
        k_BSKC, v_BSKC = self.k_proj(states_BSD).reshape(heads), self.v_proj(states_BSD).reshape(heads)
        k_BSKC = normed(self.k_norm if self.record.norms else None, k_BSKC)
        parts = {"k": self.policy.shard_heads(k_BSKC, kv=True), "v": self.policy.shard_heads(v_BSKC, kv=True)}
        return {name: Cached(part.swapaxes(1, 2), axes) for name, part in parts.items()}


def _valid(cross: Cross, seen: Seen, batch: int, encoded: int) -> jax.Array | None:
    """Returns the mask of real tokens, first the encoder's and then the decoder's; None if all are."""
    if cross.valid_BS is None and seen.valid_BS is None:
        return None
    lengths = (encoded, seen.k_BKSC.shape[2])
    masks = zip((cross.valid_BS, seen.valid_BS), lengths, strict=True)
    return jnp.concatenate([jnp.ones((batch, n), bool) if mask is None else mask for mask, n in masks], axis=1)


def _order(seen: Seen, encoded: int, own: int) -> Select | None:
    """Returns the selection of the encoder's tokens and of the decoder's that the sight allows; None for all tokens."""
    if order_seen(1, own, 0, seen.scores.sight) is None:
        return None
    offset = seen.masks()["offset"]

    def select(start: jax.Array | int, queries: int) -> jax.Array:
        seen_TR = order_seen(queries, own, offset + start, seen.scores.sight)
        assert seen_TR is not None
        return jnp.pad(seen_TR, ((0, 0), (encoded, 0)), constant_values=True)[None, None]

    return select
