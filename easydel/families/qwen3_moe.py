"""Qwen3-MoE (Yang et al. 2025, arXiv:2505.09388): Qwen3 with routed experts and no shared one."""

from easydel.families import llama as base
from easydel.families._experts import FUSED_BY_PEFT, in_steps
from easydel.families._parts import Decoder, HFConfig, QKNorm, RMSNorm, family


@family("qwen3_moe", base.NAMES, peft_lacks=FUSED_BY_PEFT)
def qwen3_moe(c: HFConfig) -> Decoder:
    window = c.sliding_window if c.use_sliding_window else None  # with a window, all layers have it
    norm, bias = QKNorm(RMSNorm(c.rms_norm_eps)), c.attention_bias
    mixer = base.attention(c, biased=bias, norms=norm, window=window)
    return base.pre_norm(c, [mixer] * c.num_hidden_layers, in_steps(c))
