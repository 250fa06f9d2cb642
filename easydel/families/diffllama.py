"""DiffLlama (Ye et al. 2024, arXiv:2410.05258): each output is a difference of two attentions."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp

from easydel.families import llama as base
from easydel.families._parts import Attention, ConfigError, Decoder, HFConfig, RMSNorm, family
from easydel.layers.attention import AttentionLayer
from easydel.layers.context import Context
from easydel.layers.kv_cache import Seen
from easydel.layers.linear import parameter
from easydel.policy import Policy

# B batch, T tokens, S key slots, N heads, K kv heads, C head channels, V value channels, twice C
LAMBDAS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")


@dataclass(frozen=True)
class Differential(Attention):
    """What a head of the first half gives, less a learned share of what one of the second half does.

    Each head reads two value heads side by side. `start` is the share before training, `eps` that of the norm after it.
    """

    start: float = 0.8
    eps: float = 1e-5

    def build(self, features: int, policy: Policy) -> DifferentialLayer:
        return DifferentialLayer(self, features, policy)


class DifferentialLayer(AttentionLayer):
    def __init__(self, record: Differential, features: int, policy: Policy):
        super().__init__(record, features, policy)
        for name in LAMBDAS:
            setattr(self, name, parameter((record.heads.dim,), policy))
        self.start, self.norm = record.start, RMSNorm(record.eps, scaled=False)

    def _seen(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[Seen, Any]:
        seen, cache = super()._seen(x_BTD, context, cache)
        pairs_BKSV = jnp.concatenate(jnp.split(seen.v_BKSC, 2, axis=1), axis=-1)
        return replace(seen, v_BKSC=jnp.concatenate([pairs_BKSV, pairs_BKSV], axis=1)), cache

    def _finished(self, x_BTD: jax.Array, out_BTNV: jax.Array) -> jax.Array:
        q1, k1, q2, k2 = (getattr(self, name)[...].astype(jnp.float32) for name in LAMBDAS)
        share = jnp.exp(jnp.sum(q1 * k1)) - jnp.exp(jnp.sum(q2 * k2)) + self.start
        first_BTNV, second_BTNV = jnp.split(out_BTNV.astype(jnp.float32), 2, axis=2)
        normed_BTNV = self.norm.normalise(first_BTNV - share * second_BTNV) * (1 - self.start)
        return normed_BTNV.reshape(*x_BTD.shape[:2], -1).astype(out_BTNV.dtype)


@family("diffllama", base.NAMES, inert={"lambda_std_dev": "how training begins"})
def diffllama(c: HFConfig) -> Decoder:
    plain = base.attention(c, biased=c.attention_bias)
    if plain.heads.kv % 2:
        raise ConfigError(f"{plain.heads.kv} kv heads, expected pairs of them", file=c.file)
    own = [getattr(plain, field.name) for field in fields(plain)]
    starts = [0.8 - 0.6 * math.exp(-0.3 * layer) for layer in range(c.num_hidden_layers)]
    return base.pre_norm(c, [Differential(*own, start=start, eps=c.rms_norm_eps) for start in starts])
