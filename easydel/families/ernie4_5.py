"""ERNIE 4.5 (Baidu 2025, the ERNIE 4.5 technical report): Llama that rotates neighbouring channels, as GPT-J."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family
from easydel.families import llama as base

SIZES = {"vocab_size": 103424, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 18}
HEADS = {"num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 128, "rope_theta": 500000.0}
OTHERS = {"max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "use_bias": False}
DEFAULTS = base.DEFAULTS | SIZES | HEADS | OTHERS


@family("ernie4_5", base.NAMES, defaults=DEFAULTS)
def ernie4_5(c: HFConfig) -> Decoder:
    mixer = base.attention(c, interleaved=True, bias=c.use_bias, out_bias=c.use_bias)
    return base.pre_norm(c, [mixer] * c.num_hidden_layers, bias=c.use_bias)
