"""dots.llm1 (Huo et al. 2025, arXiv:2506.05767): Qwen3's attention, DeepSeek-V3's shared and routed experts."""

from easydel.families import deepseek_v2 as v2, llama as base
from easydel.families._experts import CORRECTED, FUSED_BY_PEFT, after_first, corrected_router
from easydel.families._layers import FULL, SLIDING, layer_types, windows
from easydel.families._parts import Decoder, HFConfig, QKNorm, RMSNorm, family


@family(
    "dots1",
    v2.NAMES.extended(CORRECTED),
    inert={"use_sliding_window": "a window is used wherever there is one"},
    peft_lacks=FUSED_BY_PEFT,
)
def dots1(c: HFConfig) -> Decoder:
    size, first, bias = c.sliding_window, c.max_window_layers, c.attention_bias
    kinds = layer_types(c, [SLIDING if size and i >= first else FULL for i in range(c.num_hidden_layers)])
    choices = {"biased": bias, "norms": QKNorm(RMSNorm(c.rms_norm_eps))}
    mixers = [base.attention(c, window=window, **choices) for window in windows(c, kinds)]
    return base.pre_norm(c, mixers, after_first(c, corrected_router(c)))
