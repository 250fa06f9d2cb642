"""CWM (Meta FAIR 2025, arXiv:2510.02387): Llama 3 in which three of four layers see a window of the past only."""

from easydel.families import llama as base
from easydel.families._layers import FULL, SLIDING, layer_types
from easydel.families._parts import Decoder, HFConfig, family


@family("cwm", base.NAMES)
def cwm(c: HFConfig) -> Decoder:
    kinds = layer_types(c, [SLIDING if i % 4 else FULL for i in range(c.num_hidden_layers)])
    size = c.sliding_window or None
    mixers = [base.attention(c, window=size if kind == SLIDING else None) for kind in kinds]
    return base.pre_norm(c, mixers, bias=c.mlp_bias)
