"""Mistral 7B (Jiang et al. 2023, arXiv:2310.06825): Llama whose layers may see a window of the past only."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family
from easydel.families import llama as base

DEFAULTS = base.DEFAULTS | {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}


@family("mistral", base.NAMES, defaults=DEFAULTS)
def mistral(c: HFConfig) -> Decoder:
    return base.pre_norm(c, [base.attention(c, window=c.sliding_window)] * c.num_hidden_layers)
