"""Hyper-connections (Zhu et al. 2024, arXiv:2409.19606): several streams between layers instead of one.

Each part reads a weighted sum of the streams, and its output is added to each stream with a weight. All weights are
computed from a token's streams. Streams may also be mixed (mHC, Xie et al. 2025, arXiv:2512.24880).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from easydel.layers.block import Block, BlockLayer, Flow, normed
from easydel.layers.linear import contract, exact
from easydel.layers.norm import RMSNorm
from easydel.policy import Policy
from easydel.tree import split_of

# B batch, T tokens of this call, H streams, J streams after mixing, D model


@dataclass(frozen=True)
class Sinkhorn:
    """Mixes streams by a matrix whose rows and columns sum to 1, nearly: it is normalised `rounds` times by both."""

    rounds: int

    def matrix(self, logits_BTHJ: jax.Array, eps: float) -> jax.Array:
        """Returns the share of each stream in each; `eps` keeps sums from zero."""

        def by_rows(mix: jax.Array) -> jax.Array:
            return mix / (jnp.sum(mix, axis=-1, keepdims=True) + eps)

        def by_columns(mix: jax.Array) -> jax.Array:
            return mix / (jnp.sum(mix, axis=-2, keepdims=True) + eps)

        first = by_columns(jax.nn.softmax(logits_BTHJ) + eps)
        return jax.lax.fori_loop(0, self.rounds - 1, lambda _, mix: by_columns(by_rows(mix)), first)


@dataclass(frozen=True)
class HyperConnections:
    """`count` streams, which are equal at first; a weighted sum of them is the output.

    Weights come from all streams of a token, side by side and normed by `norm`, which has no scale. Those for reading
    are sigmoids plus `eps`, those for writing `gain` times sigmoids plus `floor`. Without `mix` a stream stays itself.
    """

    count: int
    norm: RMSNorm
    eps: float
    mix: Sinkhorn | None = None
    gain: float = 2.0
    floor: float = 0.0

    def build(self, features: int, policy: Policy) -> HyperStream:
        return HyperStream(self, features, policy)


class StreamWeights(nnx.Module):
    """Logits of several kinds of weights, `sizes` of each: `kernel` @ streams, times a `gain` per kind, plus `bias`."""

    def __init__(self, record: HyperConnections, sizes: tuple[int, ...], features: int, policy: Policy):
        self.kernel = exact((sum(sizes), record.count * features), policy)
        self.bias = exact((sum(sizes),), policy)
        self.gain = exact((len(sizes),), policy)
        # in 16 bits the shares of streams would not sum to 1
        self.norm, self.sizes, self.policy = record.norm, sizes, replace(policy, dtype=jnp.dtype(jnp.float32))

    def __call__(self, x_BTHD: jax.Array) -> list[jax.Array]:
        """Returns the logits of each kind, [B, T, size] in float32."""
        streams = self.norm.normalise(x_BTHD.reshape(*x_BTHD.shape[:2], -1).astype(jnp.float32))
        gains = jnp.repeat(self.gain[...], np.array(self.sizes), total_repeat_length=sum(self.sizes))
        logits = contract(streams, self.kernel[...], self.policy, split_of(self.kernel)) * gains
        logits = logits + self.bias[...].astype(jnp.float32)
        return jnp.split(logits, np.cumsum(self.sizes)[:-1], axis=-1)


def read(x_BTHD: jax.Array, logits_BTH: jax.Array, eps: float) -> jax.Array:
    """Returns the weighted sum of streams."""
    weights_BTH = jax.nn.sigmoid(logits_BTH) + eps
    return jnp.sum(weights_BTH[..., None] * x_BTHD, axis=2).astype(x_BTHD.dtype)


class HyperStream(nnx.Module):
    def __init__(self, record: HyperConnections, features: int, policy: Policy):
        self.weights = StreamWeights(record, (record.count,), features, policy)
        self.record = record

    def open(self, x_BTD: jax.Array, embedded: Any) -> Flow:
        return {"x": jnp.repeat(x_BTD[:, :, None], self.record.count, axis=2)}

    def close(self, flow: Flow) -> jax.Array:
        return read(flow["x"], self.weights(flow["x"])[0], self.record.eps)


@dataclass(frozen=True, kw_only=True)
class HyperBlock(Block):
    """A block whose parts read from `streams` and write to them."""

    streams: HyperConnections

    def build(self, features: int, policy: Policy) -> HyperLayer:
        return HyperLayer(self, features, policy)


class HyperLayer(BlockLayer):
    def __init__(self, record: HyperBlock, features: int, policy: Policy):
        super().__init__(record, features, policy)
        count = record.streams.count
        sizes = (count, count) if record.streams.mix is None else (count, count, count * count)
        self.attn_hc = StreamWeights(record.streams, sizes, features, policy)
        self.ffn_hc = StreamWeights(record.streams, sizes, features, policy)
        self.streams = record.streams

    def _sequential(self, x_BTD: jax.Array, run: Any) -> jax.Array:
        x_BTHD = self._through("mixer", self.attn_hc, self.input_layernorm, x_BTD, run)
        return self._through("ffn", self.ffn_hc, self.post_attention_layernorm, x_BTHD, run)

    def _through(self, slot: str, weights: StreamWeights, norm: Any, x_BTHD: jax.Array, run: Any) -> jax.Array:
        """Returns the streams after the part in `slot`."""
        streams, wide_BTHD = self.streams, x_BTHD.astype(jnp.float32)
        reading, writing, *mixing = weights(x_BTHD)
        y_BTD = run(slot, normed(norm, read(x_BTHD, reading, streams.eps)))
        if streams.mix is not None:
            mix_BTHJ = streams.mix.matrix(mixing[0].reshape(*reading.shape, -1), streams.eps)
            wide_BTHD = jnp.einsum("BTHJ,BTHD->BTJD", mix_BTHJ, wide_BTHD, precision=self.policy.precision)
        written_BTH = streams.gain * jax.nn.sigmoid(writing) + streams.floor
        return (wide_BTHD + written_BTH[..., None] * y_BTD[:, :, None].astype(jnp.float32)).astype(x_BTHD.dtype)
