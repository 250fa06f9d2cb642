"""OLMo 3 (OLMo Team 2025, arXiv:2512.13961): OLMo 2 with three sliding layers to each full one, the one stretched."""

from easydel.families import olmo2
from easydel.families._layers import FULL, SLIDING, alternating, ropes
from easydel.families._parts import Decoder, HFConfig, QKNorm, RMSNorm, family
from easydel.families.llama import attention


@family("olmo3", olmo2.NAMES)
def olmo3(c: HFConfig) -> Decoder:
    rope, bias = ropes(c, local="rope_theta"), c.attention_bias
    choices = {"biased": bias, "norms": QKNorm(RMSNorm(c.rms_norm_eps), whole=True)}
    kinds = {
        SLIDING: attention(c, rope=rope[SLIDING], window=c.sliding_window, **choices),
        FULL: attention(c, rope=rope[FULL], **choices),
    }
    return olmo2.post_norm(c, [kinds[kind] for kind in alternating(c, 4)])
