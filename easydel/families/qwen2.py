"""Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv:2407.10671, arXiv:2412.15115): Llama with biases on q, k and v."""

from easydel.families import llama as base
from easydel.families._layers import upper_windows
from easydel.families._parts import Decoder, HFConfig, family


@family("qwen2", base.NAMES)
def qwen2(c: HFConfig) -> Decoder:
    return base.pre_norm(c, [base.attention(c, biased="qkv", window=window) for window in upper_windows(c)])
