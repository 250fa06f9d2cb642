"""Ministral (Mistral AI 2024, mistral.ai/news/ministraux): Mistral in which some layers may see all of the past."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family, mistral
from easydel.families import llama as base
from easydel.families.qwen2 import FULL, SLIDING, layer_types


@family("ministral", base.NAMES, defaults=mistral.DEFAULTS)
def ministral(c: HFConfig) -> Decoder:
    window = {SLIDING: c.sliding_window, FULL: None}
    kinds = layer_types(c, [SLIDING] * c.num_hidden_layers)
    return base.pre_norm(c, [base.attention(c, window=window[kind]) for kind in kinds])
