"""dots.llm1 (Huo et al. 2025, arXiv:2506.05767): Qwen3's attention, DeepSeek-V3's shared and routed experts."""

from __future__ import annotations

from dataclasses import replace

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import deepseek_v2 as v2
from easydel.families import deepseek_v3 as v3
from easydel.families import family, qwen2
from easydel.families import llama as base
from easydel.layers.attention import QKNorm
from easydel.layers.norm import RMSNorm

NAMES = v2.NAMES.extended(v3.CORRECTED)
SIZES = {"vocab_size": 152064, "hidden_size": 4608, "intermediate_size": 10944, "num_hidden_layers": 62}
EXPERTS = {"n_routed_experts": None, "n_shared_experts": None, "moe_intermediate_size": 1408, "norm_topk_prob": False}
OTHERS = {"n_group": 1, "topk_group": 1, "sliding_window": 4096, "max_window_layers": 62}
DEFAULTS = v2.DEFAULTS | SIZES | EXPERTS | OTHERS


# use_sliding_window: a window is used wherever there is one
@family("dots1", NAMES, defaults=DEFAULTS, aliases=v3.ALIASES, inert=("use_sliding_window",))
def dots1(c: HFConfig) -> Decoder:
    size, first, bias = c.sliding_window, c.max_window_layers, c.attention_bias
    default = [qwen2.SLIDING if size and i >= first else qwen2.FULL for i in range(c.num_hidden_layers)]
    full = base.attention(c, bias=bias, out_bias=bias, qk_norm=QKNorm(RMSNorm(c.rms_norm_eps)))
    mixers = {qwen2.FULL: full, qwen2.SLIDING: replace(full, window=size)}
    kinds = qwen2.layer_types(c, default)
    return base.pre_norm(c, [mixers[kind] for kind in kinds], v2.feed_forwards(c, v3.corrected_router(c)))
