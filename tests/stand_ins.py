"""Small records for each idea that a block can be made of, in place of the families that use it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.decoder import Decoder
from easydel.layers.attention import Attention, Gate, HandOn, Heads, QKNorm, TakeOver, Weights
from easydel.layers.beside import Beside
from easydel.layers.block import Block, BlockLayer, Flow
from easydel.layers.context import Context
from easydel.layers.embed import Embed, Head, Sinusoidal, Transform
from easydel.layers.linear import Embedding, Linear, buffer, parameter
from easydel.layers.mamba import Mamba
from easydel.layers.mlp import GLU, MLP
from easydel.layers.moe import MoE, Router, TopK
from easydel.layers.norm import LayerNorm, RMSNorm
from easydel.layers.part import Cached, Handed, Part, empty
from easydel.layers.residual import FromRead, Parallel
from easydel.layers.rope import Rope
from easydel.layers.shared import shared_module
from easydel.ops.attend import Causal, Chunks, Prefix
from easydel.policy import Policy

# B batch, T tokens of this call, S slots, D model
VOCAB, FEATURES, LENGTH, BATCH = 61, 24, 23, 2
NORM = RMSNorm(1e-5)
HEADS = Heads(4, 2, 6, biased="qv")
ROTATED = Attention(HEADS, Rope(6))
FFN = GLU(20, "silu")
EMBED, HEAD = Embed(), Head(tied=False)
AXES = ("dp", "fsdp", "tp", "sp")


def block(mixer: Part | None, ffn: Part | None = FFN, **more: Any) -> Block:
    return Block(mixer, ffn, attn_in=NORM, ffn_in=NORM, **more)


def decoder(*blocks: Block, **more: Any) -> Decoder:
    own = {"final_norm": NORM, "head": HEAD, "embed": EMBED, "max_length": None} | more
    return Decoder(VOCAB, FEATURES, blocks, **own)


@dataclass(frozen=True)
class EachTimes(Part):
    """Multiplies a projection by what its layer gets for itself."""

    def build(self, features: int, policy: Policy) -> Any:
        return EachTimesLayer(features, policy)


class EachTimesLayer(nnx.Module):
    def __init__(self, features: int, policy: Policy):
        self.up_proj = Linear(features, features, policy)

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        return self.up_proj(x_BTD) * context.each["extra"] + context.entered_BTD, cache


@dataclass(frozen=True)
class Reading(EachTimes):
    def reads(self) -> Iterable[str]:
        return ("entered_BTD",)


@dataclass(frozen=True)
class PerLayerTable:
    def build(self, features: int, layers: int, policy: Policy) -> Any:
        return PerLayerRows(features, layers, policy)


class PerLayerRows(nnx.Module):
    def __init__(self, features: int, layers: int, policy: Policy):
        self.embed_tokens_per_layer = Embedding(VOCAB, layers * features, policy)
        self.layers = layers

    def __call__(self, ids_BT: jax.Array, x_BTD: jax.Array, context: Context) -> dict[str, jax.Array]:
        rows = self.embed_tokens_per_layer(ids_BT).reshape(*ids_BT.shape, self.layers, -1)
        return {"extra": jnp.moveaxis(rows, 2, 0)}


@dataclass(frozen=True)
class Borrowing(Part):
    """A feed-forward that all layers share, before a projection of the layer's own."""

    def build(self, features: int, policy: Policy) -> Any:
        return BorrowingLayer(features, policy)

    def shares(self) -> Iterable[tuple[str, Part]]:
        return (("common", FFN),)


class BorrowingLayer(nnx.Module):
    def __init__(self, features: int, policy: Policy):
        self.down_proj = Linear(features, features, policy)

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        common = shared_module("common", context)
        return self.down_proj(common(x_BTD, context, None)[0]), cache


@dataclass(frozen=True)
class Twice:
    """Two streams; layers read their sum."""

    def build(self, features: int, policy: Policy) -> Any:
        return TwiceStream(features, policy)


class TwiceStream(nnx.Module):
    def __init__(self, features: int, policy: Policy):
        self.up_proj = Linear(features, features, policy)

    def open(self, x_BTD: jax.Array, embedded: Any) -> Flow:
        return {"x": jnp.stack([x_BTD, self.up_proj(x_BTD)], axis=2)}

    def close(self, flow: Flow) -> jax.Array:
        return flow["x"][:, :, 0] - flow["x"][:, :, 1]


@dataclass(frozen=True)
class WideBlock(Block):
    def build(self, features: int, policy: Policy) -> Any:
        return WideLayer(self, features, policy)


class WideLayer(BlockLayer):
    def __init__(self, record: WideBlock, features: int, policy: Policy):
        super().__init__(record, features, policy)
        self.scale = parameter((2, 1), policy)

    def __call__(self, flow: Flow, context: Context, cache: Any) -> tuple[Flow, Any]:
        x_BTHD = flow["x"]
        inner, cache = super().__call__({**flow, "x": jnp.sum(x_BTHD, axis=2)}, context, cache)
        return {**inner, "x": x_BTHD + inner["x"][:, :, None] * self.scale[...]}, cache


@dataclass(frozen=True)
class BestKeys(Part):
    """Chooses the `count` keys with the highest scores among those that a query may see; hands the scores on."""

    count: int
    name = "indexer"

    def build(self, features: int, policy: Policy) -> Any:
        return BestKeysLayer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> Any:
        return empty((batch, length), jnp.float32, "batch", None)

    def hands_on(self) -> Iterable[str]:
        return ("scores",)


class BestKeysLayer(nnx.Module):
    def __init__(self, record: BestKeys, features: int, policy: Policy):
        self.wk = Linear(features, 1, policy)
        self.record = record

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Cached | None) -> tuple[Any, Any]:
        scores_BS, offset = self.wk(x_BTD)[..., 0].astype(jnp.float32), context.offset
        if cache is not None:
            scores_BS = jax.lax.dynamic_update_slice_in_dim(cache.array, scores_BS, offset, axis=1)
            cache = replace(cache, array=scores_BS)

        def select(start: Any, queries: int) -> jax.Array:
            slots_T = offset + start + jnp.arange(queries)
            seen_BTS = (jnp.arange(scores_BS.shape[1]) <= slots_T[:, None])[None]
            if context.valid_BS is not None:
                seen_BTS = seen_BTS & context.valid_BS[:, None]
            own_BTS = jnp.where(seen_BTS, scores_BS[:, None], -jnp.inf)
            least_BT1 = jax.lax.top_k(own_BTS, min(self.record.count, own_BTS.shape[-1]))[0][..., -1:]
            return (own_BTS >= least_BT1)[:, None]

        return Handed(select, {"scores": scores_BS}), cache


@dataclass(frozen=True)
class Scoring(Part):
    """A feed-forward that also reads what an indexer before it handed on."""

    def build(self, features: int, policy: Policy) -> Any:
        return ScoringLayer(features, policy)


class ScoringLayer(nnx.Module):
    def __init__(self, features: int, policy: Policy):
        self.up_proj = Linear(features, features, policy)

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        scores_BS, T = context.handed["scores"], x_BTD.shape[1]
        own_BT = jax.lax.dynamic_slice_in_dim(scores_BS, context.offset, T, axis=1)
        return self.up_proj(x_BTD) * own_BT[..., None], cache


@dataclass(frozen=True)
class Hash(Router):
    """Each token id has its expert, in a table that is not learned (Roller et al. 2021, arXiv:2106.04426)."""

    def build(self, experts: int, features: int, policy: Policy) -> Any:
        return HashGate(experts)

    def reads(self) -> Iterable[str]:
        return ("ids_BT",)


class HashGate(nnx.Module):
    def __init__(self, experts: int):
        self.expert_of_token = buffer((VOCAB,), jnp.int32)
        self.experts = experts

    def __call__(self, x_BTD: jax.Array, context: Context) -> tuple[jax.Array, jax.Array]:
        assert context.ids_BT is not None
        chosen_BT = self.expert_of_token[...][context.ids_BT] % self.experts
        return jnp.full((*chosen_BT.shape, 1), 0.8), chosen_BT[..., None]


MAMBA = Mamba(inner=16, states=3, width=4, dt_rank=2, act="silu")
SELECTING = replace(ROTATED, select=BestKeys(5))
RICH = Attention(
    Heads(4, 2, 6, value_dim=10, biased="qko"),
    Rope(4),
    weights=Weights(value_scale=1.3),
    norms=QKNorm(NORM, values=RMSNorm(1e-5, scaled=False)),
    gate=Gate(),
    out_norm=NORM,
)
SAME = replace(ROTATED, heads=Heads(4, 2, 6, keys_as_values=True), gate=Gate("silu", per_head=True))
ZEROS = MoE(5, MLP(12, "relu2", bias=False), TopK(3), zero=2, latent=10)
INPUTS = MoE(6, FFN, TopK(1, score="sigmoid"), shared=MLP(8, "gelu"), weigh="inputs")
HANDING, TAKING = replace(ROTATED, keys=HandOn("kv")), replace(ROTATED, keys=TakeOver("kv"))
WINDOW = Causal(5)
RECORDS: dict[str, Decoder] = {
    "mixers beside each other": decoder(*[block(Beside((ROTATED, MAMBA), (0.7, 1.0), (1.0, 1.4)))] * 3),
    "inputs for every layer": decoder(
        *[block(ROTATED, Reading(), ffn_residual=FromRead(0.5, 2.0))] * 3, per_layer=PerLayerTable()
    ),
    "parts that layers share, experts that do nothing": decoder(
        *[block(ROTATED, Borrowing())] * 2, *[block(ROTATED, ZEROS)] * 2
    ),
    "a widened stream": decoder(
        *[WideBlock(ROTATED, FFN, attn_in=NORM, ffn_in=NORM, residual=Parallel(0.3))] * 3, stream=Twice()
    ),
    "experts by hash": decoder(*[block(ROTATED, MoE(5, FFN, Hash()))] * 3),
    "keys of a window handed on": decoder(
        block(replace(HANDING, sight=WINDOW)), *[block(replace(TAKING, sight=WINDOW))] * 2, block(ROTATED)
    ),
    "keys handed on in every period": decoder(*[block(HANDING), block(TAKING)] * 2),
    "a selection that is handed on": decoder(*[block(SELECTING, Scoring()), block(ROTATED, Scoring())] * 2),
    "a prefix, gates, norms and wider values": decoder(
        *[block(replace(RICH, sight=Prefix()), replace(FFN, norm=NORM), residual=FromRead(0.5, 2.0))] * 3
    ),
    "chunks, keys for values, weighted inputs": decoder(*[block(replace(SAME, sight=Chunks(4)), INPUTS)] * 3),
    "waves, types and a transform": decoder(
        *[block(replace(ROTATED, position=None))] * 3,
        embed=Embed(Sinusoidal(2, endpoint=True), LayerNorm(1e-5), 1.5, 16, False, 2, "after", True),
        head=Head(True, bias=True, transform=Transform("gelu", LayerNorm(1e-5), 16)),
    ),
}
