"""Kolibri 1 (Aleph Alpha 2026, the model card of Aleph-Alpha/Kolibri-1): sandwich norms, experts chosen by logits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from easydel.families import llama as base
from easydel.families._layers import FULL, SLIDING, alternating
from easydel.families._parts import GLU, Decoder, HFConfig, MoE, QKNorm, RMSNorm, TopK, family

NAMES = base.NAMES.extended(
    {
        "attn_output_layernorm": "post_attn_norm",
        "mlp_output_layernorm": "post_ffn_norm",
        "mlp.gate.correction_bias": "moe.router.expert_bias",
        "shared_expert": "shared_experts",
    }
)


@dataclass(frozen=True)
class ByLogits(TopK):
    """The choice is made by logits, to which the correction is added; weights are their sigmoids."""

    def choose(self, logits_BTE: jax.Array, correction_E: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        assert correction_E is not None
        _, chosen_BTK = jax.lax.top_k(logits_BTE + correction_E, self.k)
        weights_BTK = jax.nn.sigmoid(jnp.take_along_axis(logits_BTE, chosen_BTK, axis=-1))
        if self.renormalize:
            weights_BTK = weights_BTK / jnp.sum(weights_BTK, axis=-1, keepdims=True)
        return weights_BTK, chosen_BTK


@family("kolibri1", NAMES)
def kolibri1(c: HFConfig) -> Decoder:
    norm, act = RMSNorm(c.rms_norm_eps), c.hidden_act
    kinds = {
        SLIDING: base.attention(c, norms=QKNorm(norm), window=c.sliding_window),
        FULL: base.attention(c, norms=QKNorm(norm), position=None),
    }
    router = ByLogits(c.num_experts_per_tok, c.norm_topk_prob, score="sigmoid", corrected=True)
    shared = GLU(c.shared_expert_intermediate_size, act)
    ffn = MoE(c.num_experts, GLU(c.moe_intermediate_size, act), router, shared)
    mixers = [kinds[kind] for kind in alternating(c, 5)]
    plain = base.pre_norm(c, mixers, [ffn] * len(mixers))
    return replace(plain, blocks=tuple(replace(block, attn_out=norm, ffn_out=norm) for block in plain.blocks))
