"""Hyper-connections (Zhu et al. 2024, arXiv:2409.19606) with a gate for each channel (Qwen Team 2026, Qwen4-Exp)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.layers.block import Block, BlockLayer, Flow
from easydel.layers.linear import Float32Linear, Linear
from easydel.layers.ngram_input import NGramInput
from easydel.layers.norm import RMSNorm
from easydel.policy import Policy

# B batch, T tokens of this call, H streams, D model, E channels of all streams
INPUT = "ngrams"


@dataclass(frozen=True)
class GatedStreams:
    """`count` streams, which are equal at first. What is read of them is the mean of the normed streams, by gates.

    Each channel of each stream has a gate, made through `rank` features. `norm` acts on each stream alone.
    """

    count: int
    rank: int
    norm: RMSNorm

    def build(self, features: int, policy: Policy) -> GatedStreamsModule:
        return GatedStreamsModule(self, features, policy)


class StreamReader(nnx.Module):
    """Reads streams; with `writes`, also says how much of a part's output is added to each."""

    def __init__(self, record: GatedStreams, features: int, policy: Policy, *, writes: bool):
        count, wide = record.count, record.count * features
        self.norm = record.norm.build((count, features), policy)
        self.down, self.up = Linear(wide, record.rank, policy), Linear(record.rank, wide, policy)
        self.write = Float32Linear(wide, count, policy) if writes else None
        self.count = count

    def read(self, x_BTHD: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Returns a part's input [B, T, D], and the weights of its output in each stream [B, T, H] in float32."""
        normed_BTHD = self.norm(x_BTHD)
        all_BTE = normed_BTHD.reshape(*x_BTHD.shape[:2], -1)
        gates_BTE = jax.nn.sigmoid(self.up(jax.nn.silu(self.down(all_BTE) / self.count)))
        read_BTD = jnp.mean(gates_BTE.reshape(x_BTHD.shape) * normed_BTHD, axis=2)
        weights = None if self.write is None else 2 * jax.nn.sigmoid(self.write(all_BTE) / self.count)
        return read_BTD, weights


class GatedStreamsModule(nnx.Module):
    def __init__(self, record: GatedStreams, features: int, policy: Policy):
        self.reader = StreamReader(record, features, policy, writes=False)
        self.count = record.count

    def open(self, x_BTD: jax.Array, embedded: Any) -> Flow:
        return {"x": jnp.repeat(x_BTD[:, :, None], self.count, axis=2)}

    def close(self, flow: Flow) -> jax.Array:
        return self.reader.read(flow["x"])[0]


@dataclass(frozen=True, kw_only=True)
class GatedStreamsBlock(Block):
    """A block whose parts read from `streams` and write to all; what `ngrams` makes of the last ids is added before."""

    streams: GatedStreams
    ngrams: NGramInput | None = None

    def build(self, features: int, policy: Policy) -> GatedStreamsLayer:
        return GatedStreamsLayer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, Any]:
        own = {} if self.ngrams is None else {INPUT: self.ngrams.cache(batch, dtype)}
        return super().cache(batch, length, dtype) | own

    def reads(self) -> Iterable[str]:
        yield from super().reads()
        if self.ngrams is not None:
            yield "ids_BT"


class GatedStreamsLayer(BlockLayer):
    def __init__(self, record: GatedStreamsBlock, features: int, policy: Policy):
        super().__init__(record, features, policy)
        self.attn_reader = StreamReader(record.streams, features, policy, writes=True)
        self.ffn_reader = StreamReader(record.streams, features, policy, writes=True)
        self.ngrams = None if record.ngrams is None else record.ngrams.build(features, policy)

    def _sequential(self, x_BTD: jax.Array, run: Any) -> jax.Array:
        x_BTHD = x_BTD
        if self.ngrams is not None:
            added_BTHD, state = self.ngrams(x_BTHD, run.context, None if run.cache is None else run.cache[INPUT])
            x_BTHD = x_BTHD + added_BTHD
            if run.cache is not None:
                run.cache[INPUT] = state
        for slot, reader in (("mixer", self.attn_reader), ("ffn", self.ffn_reader)):
            read_BTD, weights_BTH = reader.read(x_BTHD)
            assert weights_BTH is not None
            y_BTD = run(slot, read_BTD)
            x_BTHD = x_BTHD + (y_BTD[:, :, None] * weights_BTH[..., None]).astype(x_BTHD.dtype)
        return x_BTHD
