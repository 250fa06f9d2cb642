"""What the last tokens add to streams, by gates (Qwen Team 2026, the model card of Qwen4-Exp)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.layers.context import Context
from easydel.layers.conv import CausalConv
from easydel.layers.linear import Linear
from easydel.layers.ngram_table import NGramTable
from easydel.layers.norm import RMSNorm
from easydel.layers.part import Cached, empty
from easydel.layers.recurrent import attended, kept
from easydel.policy import Policy

# B batch, T length, H streams, D model, E channels of all streams
State = dict[str, Cached]


@dataclass(frozen=True)
class NGramInput:
    """A value of the last tokens' vector for each of `streams`, of `features` channels, by the gate sigmoid(root(s)).

    s is the product of the normed stream with a normed key of the vector, and root(s) has the sign of s. A convolution
    over `width` tokens, each `table.order` from the next, adds what was before.
    """

    table: NGramTable
    width: int
    norm: RMSNorm
    streams: int
    features: int

    def carries(self, tokens: int) -> str:
        return "vectors of n-grams"

    def build(self, features: int, policy: Policy) -> NGramInputModule:
        return NGramInputModule(self, policy)

    def cache(self, batch: int, dtype: Any) -> State:
        """Returns the last tokens, and the last inputs of the convolution."""
        shape = (batch, (self.width - 1) * self.table.order, self.streams * self.features)
        return {"tokens": self.table.cache(batch), "conv": empty(shape, dtype, "batch", None, None)}


class NGramInputModule(nnx.Module):
    def __init__(self, record: NGramInput, policy: Policy):
        each = (record.streams, record.features)
        wide, step = record.streams * record.features, record.table.order
        self.table = record.table.build(policy)
        self.key_proj = Linear(record.table.dim, wide, policy)
        self.value_proj = Linear(record.table.dim, record.features, policy)
        self.norm_key, self.norm_query, self.norm_conv = (record.norm.build(each, policy) for _ in range(3))
        self.conv1d = CausalConv(wide, record.width, policy, bias=False, step=step)

    def __call__(self, x_BTHD: jax.Array, context: Context, cache: State | None) -> tuple[jax.Array, State | None]:
        """Returns what is added to the streams, and the new state."""
        found_BTE, tokens = self.table(context, None if cache is None else cache["tokens"])
        key_BTHD = self.norm_key(self.key_proj(found_BTE).reshape(x_BTHD.shape))
        score_BTH = jnp.sum(key_BTHD * self.norm_query(x_BTHD), axis=-1, keepdims=True) * x_BTHD.shape[-1] ** -0.5
        root_BTH = jnp.sqrt(jnp.maximum(jnp.abs(score_BTH), 1e-6)) * jnp.sign(score_BTH)
        value_BTHD = jax.nn.sigmoid(root_BTH) * self.value_proj(found_BTE)[:, :, None]
        flat = (*x_BTHD.shape[:2], -1)
        given_BTE = attended(self.norm_conv(value_BTHD).reshape(flat), context)
        mixed_BTE, last = self.conv1d(given_BTE, None if cache is None else cache["conv"].array)
        added_BTE = attended(value_BTHD.reshape(flat), context) + jax.nn.silu(mixed_BTE)
        return added_BTE.reshape(x_BTHD.shape), kept(cache, tokens=tokens, conv=last)
