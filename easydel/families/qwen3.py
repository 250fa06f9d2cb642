"""Qwen3 (Yang et al. 2025, arXiv:2505.09388): Qwen2 with norms on queries and keys in place of their biases."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family, qwen2
from easydel.families import llama as base
from easydel.layers.attention import QKNorm
from easydel.layers.norm import RMSNorm

DEFAULTS = qwen2.DEFAULTS | {"head_dim": 128}


@family("qwen3", base.NAMES, defaults=DEFAULTS)
def qwen3(c: HFConfig) -> Decoder:
    choices = {"bias": c.attention_bias, "out_bias": c.attention_bias, "qk_norm": QKNorm(RMSNorm(c.rms_norm_eps))}
    return base.pre_norm(c, [base.attention(c, window=window, **choices) for window in qwen2.windows(c)])
