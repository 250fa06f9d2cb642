"""OLMo 3 (OLMo Team 2025, arXiv:2512.13961): OLMo 2 with three sliding layers to each full one, the one stretched."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family, gemma3_text, olmo2
from easydel.families.gemma2 import alternating
from easydel.families.llama import attention
from easydel.families.qwen2 import FULL, SLIDING
from easydel.layers.attention import QKNorm
from easydel.layers.norm import RMSNorm

THETA = 500000.0


@family("olmo3", olmo2.NAMES, defaults=olmo2.DEFAULTS | {"sliding_window": 4096})
def olmo3(c: HFConfig) -> Decoder:
    rope, bias = gemma3_text.ropes(c, sliding=c.get("rope_theta", THETA), full=THETA), c.attention_bias
    choices = {"bias": bias, "out_bias": bias, "qk_norm": QKNorm(RMSNorm(c.rms_norm_eps), whole=True)}
    kinds = {
        SLIDING: attention(c, rope=rope[SLIDING], window=c.sliding_window, **choices),
        FULL: attention(c, rope=rope[FULL], **choices),
    }
    return olmo2.post_norm(c, [kinds[kind] for kind in alternating(c, 4)])
