"""Mistral 7B (Jiang et al. 2023, arXiv:2310.06825): Llama whose layers may see a window of the past only."""

from easydel.families import llama as base
from easydel.families._parts import Decoder, HFConfig, family


@family("mistral", base.NAMES)
def mistral(c: HFConfig) -> Decoder:
    return base.pre_norm(c, [base.attention(c, window=c.sliding_window)] * c.num_hidden_layers)
