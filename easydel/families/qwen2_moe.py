"""Qwen1.5-MoE and Qwen2-MoE (Yang et al. 2024, arXiv:2407.10671): Qwen2, routed experts and a gated shared one."""

from easydel.families import llama as base
from easydel.families._experts import in_steps
from easydel.families._layers import FULL, SLIDING, layer_types, windows
from easydel.families._parts import GLU, Decoder, HFConfig, family


@family("qwen2_moe", base.NAMES)
def qwen2_moe(c: HFConfig) -> Decoder:
    used, last = c.use_sliding_window, c.max_window_layers
    default = [SLIDING if used and i < last and i % 2 == 0 else FULL for i in range(c.num_hidden_layers)]
    mixers = [
        base.attention(c, biased="qkv" if c.qkv_bias else "", window=window)
        for window in windows(c, layer_types(c, default))
    ]
    return base.pre_norm(c, mixers, in_steps(c, GLU(c.shared_expert_intermediate_size, c.hidden_act)))
