"""Solar Open (Upstage 2026, arXiv:2601.07022): Llama's attention, DeepSeek-V3's experts in every layer."""

from easydel.families import deepseek_v2 as v2, llama as base
from easydel.families._experts import CORRECTED, FUSED_BY_PEFT, corrected_router, experts
from easydel.families._parts import Decoder, HFConfig, family


@family("solar_open", v2.NAMES.extended(CORRECTED), peft_lacks=FUSED_BY_PEFT)
def solar_open(c: HFConfig) -> Decoder:
    mixer, layers = base.attention(c, biased="qkv" if c.attention_bias else ""), c.num_hidden_layers
    return base.pre_norm(c, [mixer] * layers, [experts(c, corrected_router(c))] * layers)
