"""Gemma 3, text only (Gemma Team 2025, arXiv:2503.19786): Gemma 2 with qk norms, no caps, and a rope for each kind."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family, gemma, gemma2
from easydel.families.llama import attention
from easydel.families.qwen2 import FULL, SLIDING
from easydel.layers.attention import QKNorm
from easydel.layers.rope import Rope, rope_from_settings

DEFAULTS = gemma2.DEFAULTS | {
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}


def ropes(c: HFConfig) -> dict[str, Rope]:
    """The rope of each kind of layer. Before `rope_parameters`, `rope_scaling` was for full layers alone."""
    local = c.get("rope_local_base_freq", 10000.0)
    nested = SLIDING in c.get("rope_parameters", {})
    sliding = c.rope(SLIDING, theta=local) if nested else {"rope_type": "default", "rope_theta": local}
    full = c.rope(FULL, theta=1e6)
    return {kind: rope_from_settings(settings, c.head_dim) for kind, settings in ((FULL, full), (SLIDING, sliding))}


@family("gemma3_text", gemma2.NAMES, defaults=DEFAULTS, inert=("hidden_act",))
def gemma3_text(c: HFConfig) -> Decoder:
    window, rope = {SLIDING: c.sliding_window, FULL: None}, ropes(c)
    choices = {"bias": c.attention_bias, "out_bias": c.attention_bias, "scale": c.query_pre_attn_scalar**-0.5}
    choices |= {"qk_norm": QKNorm(gemma.norm(c))}
    kinds = gemma2.alternating(c, c.get("sliding_window_pattern", 6))
    return gemma2.sandwich(c, [attention(c, window=window[kind], position=rope[kind], **choices) for kind in kinds])
