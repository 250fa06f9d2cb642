"""Gemma 3, text only (Gemma Team 2025, arXiv:2503.19786): Gemma 2 with qk norms, no caps, and a rope for each kind."""

from easydel.families import gemma, gemma2
from easydel.families._layers import alternating, ropes, windows
from easydel.families._parts import Decoder, HFConfig, QKNorm, family
from easydel.families.llama import attention


@family("gemma3_text", gemma2.NAMES)
def gemma3_text(c: HFConfig) -> Decoder:
    rope, kinds = ropes(c, local="rope_local_base_freq"), alternating(c, c.get("sliding_window_pattern", 6))
    choices = {"biased": c.attention_bias, "scale": c.query_pre_attn_scalar**-0.5}
    choices |= {"norms": QKNorm(gemma.norm(c))}
    each = zip(kinds, windows(c, kinds), strict=True)
    return gemma2.sandwich(c, [attention(c, window=window, rope=rope[kind], **choices) for kind, window in each])
