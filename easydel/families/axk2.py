"""A.X K2 (SK Telecom 2026, the model card of skt/A.X-K2): DeepSeek-V3.2 with gates on norms and on attention."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
from flax import nnx

from easydel.families import axk1, deepseek_v2 as v2, deepseek_v32 as v32, llama as base
from easydel.families._experts import CORRECTED, corrected_router
from easydel.families._parts import Decoder, Fused, Gate, HFConfig, MoE, Names, RMSNorm, family, grouped
from easydel.layers.linear import Float32Linear
from easydel.policy import Policy

NORMS = "(input|post_attention)_layernorm"
RENAMES = {rf"{NORMS}\.down": r"\1_layernorm.W_down", rf"{NORMS}\.up": r"\1_layernorm.W_up"}
QUERIES = ("self_attn.q_b_proj", "self_attn.gate_proj")


@dataclass(frozen=True)
class GatedRMSNorm(RMSNorm):
    """y * sigmoid(up(silu(down(y)))), where y is the normed input and `down` has `rank` channels."""

    rank: int = 16

    def build(self, features: int | tuple[int, ...], policy: Policy) -> Any:
        return GatedRMSNormLayer(self, features, policy)


class GatedRMSNormLayer(nnx.Module):
    def __init__(self, record: GatedRMSNorm, features: Any, policy: Policy):
        self.norm = RMSNorm(record.eps, record.offset, record.scaled).build(features, policy)
        self.down = Float32Linear(features, record.rank, policy)
        self.up = Float32Linear(record.rank, features, policy)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.norm(x)
        return (y * jax.nn.sigmoid(self.up(jax.nn.silu(self.down(y))))).astype(y.dtype)


def names(c: HFConfig) -> Names:
    """Files have each head's queries and gates together."""
    together = Fused("self_attn.q_b_proj", QUERIES, grouped(c.num_attention_heads))
    return v2.NAMES.extended(CORRECTED | RENAMES, fused=(together,))


@family("axk2", names, inert={"head_dim": v32.INERT["head_dim"]})
def axk2(c: HFConfig) -> Decoder:
    mixer, router = replace(v32.attention(c), gate=Gate(), both=True), corrected_router(c)
    router = replace(router, groups=router.groups and replace(router.groups, outside=0.0))
    plain = base.pre_norm(c, [mixer] * c.num_hidden_layers, axk1.feed_forwards(c, router))
    norm, dense = GatedRMSNorm(c.rms_norm_eps, rank=c.gated_norm_rank), RMSNorm(c.rms_norm_eps)
    ffn_norms = [norm if isinstance(block.ffn, MoE) else dense for block in plain.blocks]
    blocks = zip(plain.blocks, ffn_norms, strict=True)
    return replace(plain, blocks=tuple(replace(block, attn_in=norm, ffn_in=own) for block, own in blocks))
