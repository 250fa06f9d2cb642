"""GLM-4.5 and 4.6 (Zhipu AI 2025, arXiv:2508.06471): half-rotated heads, DeepSeek-V3's shared and routed experts."""

from easydel.families import deepseek_v3 as v3, llama as base
from easydel.families._experts import FUSED_BY_PEFT, after_first, corrected_router
from easydel.families._parts import Decoder, HFConfig, QKNorm, RMSNorm, family


@family("glm4_moe", v3.names, peft_lacks=FUSED_BY_PEFT)
def glm4_moe(c: HFConfig) -> Decoder:
    norm = QKNorm(RMSNorm(c.rms_norm_eps)) if c.use_qk_norm else None
    mixer = base.attention(c, biased="qkv" if c.attention_bias else "", norms=norm)
    return base.pre_norm(c, [mixer] * c.num_hidden_layers, after_first(c, corrected_router(c)))
