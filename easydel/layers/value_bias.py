"""Attention that weighs keys by their values, and sees those that weigh most (Shi et al. 2024, arXiv:2412.11834)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from easydel.layers.attention import Attention, AttentionLayer
from easydel.layers.context import Context
from easydel.layers.kv_cache import Seen
from easydel.layers.linear import Linear, parameter
from easydel.ops.attend import Bias
from easydel.ops.scores import MASKED
from easydel.ops.sight import order_seen
from easydel.policy import Policy

# B batch, T queries, S key slots, K kv heads, N heads, E channels of all kv heads


@dataclass(frozen=True, kw_only=True)
class ValueBiased(Attention):
    """Attention whose scores have a bias for each key and kv head, made of the key's values in all heads.

    A query sees the `count` keys with the greatest biases, of those that its sight allows.
    """

    count: int

    def build(self, features: int, policy: Policy) -> ValueBiasedLayer:
        return ValueBiasedLayer(self, features, policy)

    @property
    def kept_window(self) -> int | None:
        return None  # keys have to stay in order


class ValueBiasedLayer(AttentionLayer):
    def __init__(self, record: ValueBiased, features: int, policy: Policy):
        super().__init__(record, features, policy)
        heads = record.heads
        self.bias_proj = Linear(heads.kv * heads.values, heads.kv, policy, bias="k" in heads.biased)
        self.bias_gain = parameter((heads.kv,), policy)
        self.count = record.count

    def _bias(self, context: Context, seen: Seen) -> Bias:
        heads, slots = self.record.heads, seen.v_BKSC.shape[2]
        v_BSE = seen.v_BKSC.swapaxes(1, 2).reshape(-1, slots, heads.kv * heads.values)
        steps_BSK = jax.nn.softplus(self.bias_proj(v_BSE).astype(jnp.float32))
        bias_BK1S = jnp.exp(self.bias_gain[...].astype(jnp.float32) * steps_BSK).swapaxes(1, 2)[:, :, None]

        def bias(start: jax.Array | int, queries: int) -> jax.Array:
            best_BKTS = bias_BK1S
            if slots > self.count:
                seen_B1TS = self._allowed(context, seen, start, queries)
                among_BKTS = jnp.where(seen_B1TS, bias_BK1S, MASKED)
                least_BKT1 = jax.lax.top_k(jax.lax.stop_gradient(among_BKTS), self.count)[0][..., -1:]
                best_BKTS = jnp.where(among_BKTS >= least_BKT1, among_BKTS, MASKED)
            return jnp.repeat(best_BKTS, heads.count // heads.kv, axis=1)

        return bias

    def _allowed(self, context: Context, seen: Seen, start: jax.Array | int, queries: int) -> jax.Array:
        """Returns the mask [B or 1, 1, queries, S] of keys that the sight allows."""
        keys_S = jnp.arange(seen.v_BKSC.shape[2])
        allowed_TS = order_seen(queries, len(keys_S), context.offset + start, self.record.sight)
        assert allowed_TS is not None  # it is causal
        allowed = allowed_TS[None]
        if seen.valid_BS is not None:
            allowed = allowed & seen.valid_BS[:, None]
        if seen.starts_BT is not None:
            starts_BT = jax.lax.dynamic_slice_in_dim(seen.starts_BT, start, queries, axis=1)
            allowed = allowed & (keys_S >= starts_BT[..., None])
        return allowed[:, None]
