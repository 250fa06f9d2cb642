"""Attention to the last tokens one by one, and to all before as entries that stand for several (DeepSeek-V4, 2026)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from easydel.layers.compressor import Compressor, EntryIndexer
from easydel.layers.context import Context
from easydel.layers.kv_cache import places, reachable, with_earlier
from easydel.layers.linear import Linear, exact
from easydel.layers.norm import RMSNorm
from easydel.layers.part import HeadSizes, Part, empty, least
from easydel.layers.rope import Rope
from easydel.ops.attend import Causal, Scores
from easydel.ops.entries import Far, Near, attend_with_entries
from easydel.policy import ATTENTION_OUTPUT, Policy

# B batch, T tokens of this call, D model, R the queries' latent or channels of a group's output, L single tokens,
# E entries, K chosen ones, N heads, C head channels, G groups of heads, I channels of a group


@dataclass(frozen=True)
class CompressedAttention(Part):
    """Attention whose one key head is its value head too, with a sink for each head.

    Queries come from a latent of `q_rank` channels. Each sees the last `window` tokens, its own included, and if there
    is a `compressor`, the entries that are complete: all, or those that `indexer` chooses. `position` rotates keys, and
    with them values, so it turns the output back. `norm` acts on latents, keys and, without a scale, queries. Heads in
    `groups` are projected to `group_dim` channels for each group, and these to the output.
    """

    name: ClassVar[str] = "self_attn"
    heads: int
    dim: int
    q_rank: int
    window: int
    position: Rope
    norm: RMSNorm
    groups: int
    group_dim: int
    compressor: Compressor | None = None
    indexer: EntryIndexer | None = None

    @property
    def choosers(self) -> dict[str, Compressor | EntryIndexer]:
        return {part.name: part for part in (self.compressor, self.indexer) if part is not None}

    def carries(self, tokens: int) -> str:
        return "attention to entries of several tokens"

    def build(self, features: int, policy: Policy) -> CompressedLayer:
        return CompressedLayer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, Any]:
        """Returns places for the last keys, and the caches of the parts that make and choose entries."""
        shape = (batch, 1, places(length, self.window), self.dim)
        parts = {name: part.cache(batch, length, dtype) for name, part in self.choosers.items()}
        return {"kv": empty(shape, dtype, "batch", None, None, None)} | parts

    def ropes(self) -> Iterable[Rope]:
        yield self.position
        if self.indexer is not None:
            yield from self.indexer.ropes()

    def head_sizes(self) -> Iterable[HeadSizes]:
        return (HeadSizes(self.heads, self.heads, self.dim),)

    def rewinds(self, length: int, end: int) -> int | None:
        own = reachable(length, self.window, end)
        return least([own, *(part.rewinds(length, end) for part in self.choosers.values())])


class CompressedLayer(nnx.Module):
    def __init__(self, record: CompressedAttention, features: int, policy: Policy):
        wide = record.heads * record.dim
        self.q_a_proj = Linear(features, record.q_rank, policy)
        self.q_a_norm = record.norm.build(record.q_rank, policy)
        self.q_b_proj = Linear(record.q_rank, wide, policy)
        self.q_b_norm = replace(record.norm, scaled=False).build(record.dim, policy)
        self.kv_proj = Linear(features, record.dim, policy)
        self.kv_norm = record.norm.build(record.dim, policy)
        self.o_a_proj = Linear(wide // record.groups, record.groups * record.group_dim, policy)
        self.o_b_proj = Linear(record.groups * record.group_dim, features, policy)
        self.sinks = exact((record.heads,), policy)
        self.compressor = None if record.compressor is None else record.compressor.build(features, policy)
        self.indexer = None if record.indexer is None else record.indexer.build(features, policy)
        self.record, self.policy = record, policy

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        record, heads = self.record, (self.record.heads, self.record.dim)
        cos, sin = context.angles(record.position)
        latent_BTR = self.q_a_norm(self.q_a_proj(x_BTD))
        q_BTNC = self.q_b_norm(self.q_b_proj(latent_BTR).reshape(*x_BTD.shape[:2], *heads))
        q_BTNC = record.position.rotate(self.policy.shard_heads(q_BTNC), (cos, sin))
        kv_BT1C = record.position.rotate(self.kv_norm(self.kv_proj(x_BTD))[:, :, None], (cos, sin))
        near, cache = self._near(kv_BT1C.swapaxes(1, 2), context, cache)
        far, cache = self._far((x_BTD, latent_BTR), context, cache)
        scores = Scores(record.dim**-0.5, sight=Causal(record.window), precision=self.policy.precision)
        out_BTNC = attend_with_entries(q_BTNC, near, far, scores, self.sinks[...], self.policy.mesh)
        out_BTNC = record.position.rotate(out_BTNC, (cos, -sin))
        out_BTNC = checkpoint_name(self.policy.shard_heads(out_BTNC), ATTENTION_OUTPUT)
        return self.o_b_proj(self._by_groups(out_BTNC)), cache

    def _near(self, kv_B1TC: jax.Array, context: Context, cache: Any) -> tuple[Near, Any]:
        if cache is None:
            return Near(kv_B1TC[:, 0], context.valid_BS, 0), None
        new = {"kv": kv_B1TC.astype(cache["kv"].array.dtype)}
        kept, joined, valid_BL, before = with_earlier({"kv": cache["kv"]}, new, context, self.record.window - 1)
        return Near(joined["kv"][:, 0], valid_BL, before), cache | kept

    def _far(self, read: tuple[jax.Array, jax.Array], context: Context, cache: Any) -> tuple[Far | None, Any]:
        record = self.record
        if record.compressor is None or self.compressor is None:
            return None, cache
        own: dict[str, Any] = dict.fromkeys(record.choosers) if cache is None else dict(cache)
        entries_BEC, own["compressor"] = self.compressor.entries(read[0], context, own["compressor"])
        chosen_BTK = None
        if self.indexer is not None:
            chosen_BTK, own["indexer"] = self.indexer(read, context, own["indexer"])
        complete_BT = record.compressor.complete(context, read[0].shape[1])
        return Far(entries_BEC, complete_BT, chosen_BTK), None if cache is None else own

    def _by_groups(self, out_BTNC: jax.Array) -> jax.Array:
        """Returns the projections of all groups of heads side by side."""
        weight = self.o_a_proj.effective()
        floats = weight.astype if isinstance(weight, jax.Array) else weight.whole
        kernel_GRI = floats(out_BTNC.dtype).reshape(self.record.groups, self.record.group_dim, -1)
        out_BTGI = out_BTNC.reshape(*out_BTNC.shape[:2], self.record.groups, -1)
        y_BTGR = jnp.einsum("BTGI,GRI->BTGR", out_BTGI, kernel_GRI, precision=self.policy.precision)
        return y_BTGR.reshape(*y_BTGR.shape[:2], -1)
