"""Residuals by attention to the sums of blocks of layers (Thinking Machines Lab 2026, Inkling 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.layers.block import Flow
from easydel.layers.linear import parameter
from easydel.layers.norm import RMSNorm
from easydel.policy import Policy

# B batch, T length, M blocks, S blocks and the current sum, Q queries, D model
SUMS, FILLED = "block_sums", "filled_blocks"


@dataclass(frozen=True)
class BlockSums:
    """A stream with the sums of up to `blocks` earlier blocks of layers; in the end all of them are read."""

    blocks: int

    def build(self, features: int, policy: Policy) -> BlockSumsModule:
        return BlockSumsModule(self.blocks, features, policy)


class BlockReader(nnx.Module):
    """One learned query, `query` [D], or several [Q, D], to the sums of blocks."""

    def __init__(self, queries: int, features: int, policy: Policy):
        self.query = parameter((features,) if queries == 1 else (queries, features), policy)
        self.norm, self.precision = RMSNorm(1e-6, scaled=False), policy.precision

    def read(self, flow: Flow, x_BTD: jax.Array) -> list[jax.Array]:
        """Returns for each query the sums before and `x_BTD`, normed and weighted, [B, T, D] in float32."""
        sums_BTMD, filled = flow[SUMS], flow[FILLED]
        given_BTSD = jnp.concatenate([sums_BTMD, x_BTD[:, :, None].astype(sums_BTMD.dtype)], axis=2)
        normed_BTSD = self.norm.normalise(given_BTSD.astype(jnp.float32))
        query_QD = self.query[...].reshape(-1, x_BTD.shape[-1]).astype(jnp.float32) * x_BTD.shape[-1] ** -0.5
        scores_BTQS = jnp.einsum("QD,BTSD->BTQS", query_QD, normed_BTSD, precision=self.precision)
        blocks = sums_BTMD.shape[2]
        known_S = (jnp.arange(blocks + 1) < filled) | (jnp.arange(blocks + 1) == blocks)
        weights_BTQS = jax.nn.softmax(jnp.where(known_S, scores_BTQS, -jnp.inf))
        read_BTQD = jnp.einsum("BTQS,BTSD->BTQD", weights_BTQS, normed_BTSD, precision=self.precision)
        return [read_BTQD[:, :, query] for query in range(read_BTQD.shape[2])]


class BlockSumsModule(BlockReader):
    def __init__(self, blocks: int, features: int, policy: Policy):
        super().__init__(1, features, policy)
        self.blocks = blocks

    def open(self, x_BTD: jax.Array, embedded: Any) -> Flow:
        batch, length, features = x_BTD.shape
        return {
            "x": x_BTD,
            SUMS: jnp.zeros((batch, length, self.blocks, features), x_BTD.dtype),
            FILLED: jnp.zeros((), jnp.int32),
        }

    def close(self, flow: Flow) -> jax.Array:
        return self.read(flow, flow["x"])[0]


def with_sum(flow: Flow, x_BTD: jax.Array) -> Flow:
    """Returns the flow with one more block, whose sum is `x_BTD`."""
    sums_BTMD, place = flow[SUMS], flow[FILLED]
    written = jax.lax.dynamic_update_slice_in_dim(sums_BTMD, x_BTD[:, :, None].astype(sums_BTMD.dtype), place, axis=2)
    return {**flow, SUMS: written, FILLED: place + 1}
