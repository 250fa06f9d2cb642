"""Gemma 3, text only (Gemma Team 2025, arXiv:2503.19786): Gemma 2 with qk norms, no caps, and a rope for each kind."""

from __future__ import annotations

from typing import Any

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family, gemma, gemma2
from easydel.families.llama import attention
from easydel.families.qwen2 import FULL, SLIDING
from easydel.layers.attention import QKNorm

DEFAULTS = gemma2.DEFAULTS | {
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}


def ropes(c: HFConfig, *, sliding: float, full: float) -> dict[str, dict[str, Any]]:
    """The rotary settings of each kind of layer; the numbers are the thetas of those that state none.

    Before `rope_parameters`, `rope_scaling` was for full layers alone.
    """
    nested = SLIDING in c.get("rope_parameters", {})
    local = c.rope(SLIDING, theta=sliding) if nested else {"rope_type": "default", "rope_theta": sliding}
    return {FULL: c.rope(FULL, theta=full), SLIDING: local}


@family("gemma3_text", gemma2.NAMES, defaults=DEFAULTS, inert=("hidden_act",))
def gemma3_text(c: HFConfig) -> Decoder:
    window = {SLIDING: c.sliding_window, FULL: None}
    rope = ropes(c, sliding=c.get("rope_local_base_freq", 10000.0), full=1e6)
    choices = {"bias": c.attention_bias, "out_bias": c.attention_bias, "scale": c.query_pre_attn_scalar**-0.5}
    choices |= {"qk_norm": QKNorm(gemma.norm(c))}
    kinds = gemma2.alternating(c, c.get("sliding_window_pattern", 6))
    return gemma2.sandwich(c, [attention(c, window=window[kind], rope=rope[kind], **choices) for kind in kinds])
