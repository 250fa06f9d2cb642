"""Command R7B and Command A (Cohere 2025, arXiv:2504.00698): Command R with sliding layers, the others without rope."""

from easydel.families import cohere
from easydel.families._layers import FULL, SLIDING, alternating
from easydel.families._parts import Decoder, HFConfig, family
from easydel.families.llama import NAMES, attention


@family("cohere2", NAMES)
def cohere2(c: HFConfig) -> Decoder:
    choices = {"biased": c.attention_bias}
    kinds = {
        SLIDING: attention(c, interleaved=True, window=c.sliding_window, **choices),
        FULL: attention(c, position=None, **choices),
    }
    return cohere.parallel(c, [kinds[kind] for kind in alternating(c, c.get("sliding_window_pattern", 4))])
