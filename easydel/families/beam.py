"""Beam (Reflection 2026, the model card of reflection/Beam-1.0-501B-A23B): gated attention, residuals that fade."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from easydel.families import gemma2, llama as base
from easydel.families._experts import CORRECTED, FUSED_BY_PEFT, by_type, corrected_router
from easydel.families._layers import FULL, SLIDING, layer_types
from easydel.families._parts import (
    GLU,
    Attention,
    Block,
    Decoder,
    FromRead,
    Gate,
    GrowingScale,
    Head,
    HFConfig,
    MoE,
    QKNorm,
    RMSNorm,
    family,
)
from easydel.families._records import widened
from easydel.layers.attention import AttentionLayer
from easydel.layers.linear import parameter
from easydel.layers.residual import Normed
from easydel.policy import Policy

# B batch, T tokens, N heads, V value channels


@dataclass(frozen=True)
class Faded(FromRead):
    """x * `keep` + norm(branch) * `add`: what was before fades as parts add to it."""

    def join(self, x: jax.Array, read: jax.Array, branch: jax.Array, norm: Normed) -> jax.Array:
        return super().join(x, x, branch, norm)


@dataclass(frozen=True)
class SlowScale(GrowingScale):
    """Grows as a power of the position."""

    def factors(self, positions_BT: jax.Array) -> jax.Array:
        return jnp.exp(self.growth * jnp.log1p((positions_BT.astype(jnp.float32) + self.shift) / self.length))


@dataclass(frozen=True)
class FloatGLU(GLU):
    """A GLU whose product is float32, as in the authors' code."""

    def combine(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        return super().combine(gate.astype(jnp.float32), up.astype(jnp.float32)).astype(gate.dtype)


@dataclass(frozen=True)
class GatedAttention(Attention):
    """Each head's gates have a bias in common."""

    def build(self, features: int, policy: Policy) -> GatedLayer:
        return GatedLayer(self, features, policy)


class GatedLayer(AttentionLayer):
    def __init__(self, record: GatedAttention, features: int, policy: Policy):
        super().__init__(record, features, policy)
        self.gate_bias = parameter((record.heads.count,), policy)

    def _finished(self, x_BTD: jax.Array, out_BTNV: jax.Array) -> jax.Array:
        gates_BTNV = self.gate_proj(x_BTD).reshape(out_BTNV.shape) + self.gate_bias[...].astype(x_BTD.dtype)[:, None]
        return (out_BTNV * jax.nn.sigmoid(gates_BTNV)).reshape(*x_BTD.shape[:2], -1)


def attention(c: HFConfig, kind: str) -> Attention:
    """That of one kind of layers; a kind whose rotary settings are null has a scale that grows instead."""
    stated, bias = c.get("rope_parameters", {FULL: None}), c.attention_bias
    choices: dict[str, Any] = {"biased": bias, "norms": QKNorm(RMSNorm(c.rms_norm_eps))}
    if kind in stated and stated[kind] is None:
        choices |= {"position": None, "scale": SlowScale(0.1, 2048, shift=1)}
    else:
        choices |= {"rope": c.rope(kind)}
    window = c.sliding_window if kind == SLIDING else None
    plain = base.attention(c, window=window, gate=Gate(), **choices)
    return widened(GatedAttention, plain)


def faded(sums: int) -> Faded:
    """The sum of as many parts as there were, each with an equal share."""
    return Faded((1 - 1 / sums) ** 0.5, sums**-0.5)


@family(
    "beam",
    gemma2.NAMES.extended(CORRECTED, exact=(r"mlp\.gate",)),
    aliases={"n_routed_experts": "num_experts"},
    peft_lacks=FUSED_BY_PEFT,
)
def beam(c: HFConfig) -> Decoder:
    norm, act, layers = RMSNorm(c.rms_norm_eps), c.hidden_act, c.num_hidden_layers
    default = [SLIDING if (i + 1) % 6 and i + 1 < layers else FULL for i in range(layers)]
    sparse = MoE(c.num_experts, FloatGLU(c.moe_intermediate_size, act), corrected_router(c))
    ffns = by_type(c, sparse, FloatGLU(c.intermediate_size, act), 3)
    norms: dict[str, Any] = {"attn_in": norm, "attn_out": norm, "ffn_in": norm, "ffn_out": norm}
    blocks = [
        Block(attention(c, kind), ffn, **norms, residual=faded(2 * i + 2), ffn_residual=faded(2 * i + 3))
        for i, (kind, ffn) in enumerate(zip(layer_types(c, default), ffns, strict=True))
    ]
    head = Head(c.tie_word_embeddings, softcap=c.final_logit_softcapping)
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm, head=head)
