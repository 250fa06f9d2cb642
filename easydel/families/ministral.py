"""Ministral (Mistral AI 2024, mistral.ai/news/ministraux): Mistral in which some layers may see all of the past."""

from easydel.families import llama as base
from easydel.families._layers import SLIDING, layer_types, windows
from easydel.families._parts import Decoder, HFConfig, family


@family("ministral", base.NAMES)
def ministral(c: HFConfig) -> Decoder:
    kinds = layer_types(c, [SLIDING] * c.num_hidden_layers)
    return base.pre_norm(c, [base.attention(c, window=window) for window in windows(c, kinds)])
