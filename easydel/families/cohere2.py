"""Command R7B and Command A (Cohere 2025, arXiv:2504.00698): Command R with sliding layers, the others without rope."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import cohere, family
from easydel.families.gemma2 import alternating
from easydel.families.llama import NAMES, attention
from easydel.families.qwen2 import FULL, SLIDING

DEFAULTS = cohere.DEFAULTS | {"sliding_window": 4096}
INERT = (
    *("use_parallel_block", "use_parallel_embedding", "use_gated_activation", "use_embedding_sharing"),
    *("position_embedding_type", "layer_switch", "order_of_interleaved_layers"),
)


@family("cohere2", NAMES, defaults=DEFAULTS, inert=INERT)
def cohere2(c: HFConfig) -> Decoder:
    choices = {"bias": c.attention_bias, "out_bias": c.attention_bias}
    kinds = {
        SLIDING: attention(c, interleaved=True, window=c.sliding_window, **choices),
        FULL: attention(c, position=None, **choices),
    }
    return cohere.parallel(c, [kinds[kind] for kind in alternating(c, c.get("sliding_window_pattern", 4))])
