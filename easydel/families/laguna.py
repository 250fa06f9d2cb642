"""Laguna (Poolside 2026, the model card of poolside/laguna-XS.2): gated attention, heads by layer, experts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from easydel.families import llama as base
from easydel.families._experts import by_type
from easydel.families._layers import FULL, SLIDING, layer_types
from easydel.families._parts import (
    GLU,
    Attention,
    ConfigError,
    Decoder,
    Gate,
    HFConfig,
    MoE,
    QKNorm,
    RMSNorm,
    TopK,
    family,
)

NAMES = base.NAMES.extended(
    {
        "self_attn.gate_proj": "self_attn.g_proj",
        "mlp.gate.correction_bias": "mlp.experts.e_score_correction_bias",
    }
)


@dataclass(frozen=True)
class Capped(TopK):
    """Logits go through a tanh of this height first."""

    cap: float = 1.0

    def choose(self, logits_BTE: jax.Array, correction_E: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        return super().choose(self.cap * jnp.tanh(logits_BTE / self.cap), correction_E)


def attentions(c: HFConfig) -> list[Attention]:
    layers, bias, gating = (
        c.num_hidden_layers,
        c.attention_bias,
        c.only("gating", True, False, "per-head", "per-element"),
    )
    gate = Gate("softplus", per_head=gating in (True, "per-head"))
    choices = {"biased": bias, "norms": QKNorm(RMSNorm(c.rms_norm_eps)), "gate": gate}
    kinds = {
        FULL: base.attention(c, rope=c.rope(FULL), **choices),
        SLIDING: base.attention(c, rope=c.rope(SLIDING), window=c.sliding_window, **choices),
    }
    heads = c.get("num_attention_heads_per_layer") or [c.num_attention_heads] * layers
    if len(heads) != layers:
        raise ConfigError(f"{len(heads)} num_attention_heads_per_layer for {layers} layers", file=c.file)
    found = [kinds[kind] for kind in layer_types(c, [FULL] * layers)]
    return [replace(one, heads=replace(one.heads, count=count)) for one, count in zip(found, heads, strict=True)]


# gating: true, but a truth value is not all that it can be
@family("laguna", NAMES, defaults={"gating": None})
def laguna(c: HFConfig) -> Decoder:
    c.only("moe_apply_router_weight_on_input", False)
    act, cap = c.hidden_act, c.moe_router_logit_softcapping
    router = TopK(c.num_experts_per_tok, True, c.moe_routed_scaling_factor, "sigmoid", corrected=True)
    if cap > 0:
        router = Capped(router.k, True, router.scale, "sigmoid", corrected=True, cap=cap)
    shared = GLU(c.shared_expert_intermediate_size, act)
    sparse = MoE(c.num_experts, GLU(c.moe_intermediate_size, act), router, shared)
    return base.pre_norm(c, attentions(c), by_type(c, sparse, GLU(c.intermediate_size, act), 1))
