"""Qwen3 (Yang et al. 2025, arXiv:2505.09388): Qwen2 with norms on queries and keys in place of their biases."""

from easydel.families import llama as base
from easydel.families._layers import upper_windows
from easydel.families._parts import Decoder, HFConfig, QKNorm, RMSNorm, family


@family("qwen3", base.NAMES)
def qwen3(c: HFConfig) -> Decoder:
    choices = {"biased": c.attention_bias, "norms": QKNorm(RMSNorm(c.rms_norm_eps))}
    return base.pre_norm(c, [base.attention(c, window=window, **choices) for window in upper_windows(c)])
