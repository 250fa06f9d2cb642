"""Nemotron-4 and Minitron (Parmar et al. 2024, arXiv:2402.16819; arXiv:2407.14679): squared ReLUs, LayerNorms."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family
from easydel.families import llama as base
from easydel.layers.block import Block
from easydel.layers.mlp import MLP
from easydel.layers.norm import LayerNorm

SIZES = {"vocab_size": 256000, "hidden_size": 6144, "intermediate_size": 24576, "num_attention_heads": 48}
OTHERS = {"hidden_act": "relu2", "max_position_embeddings": 4096, "norm_eps": 1e-5, "partial_rotary_factor": 0.5}


@family("nemotron", base.NAMES, defaults=base.DEFAULTS | SIZES | OTHERS)
def nemotron(c: HFConfig) -> Decoder:
    norm, ffn = LayerNorm(c.norm_eps, offset=1.0), MLP(c.intermediate_size, c.hidden_act, bias=c.mlp_bias)
    mixer = base.attention(c, bias=c.attention_bias, out_bias=c.attention_bias)
    block = Block(mixer, ffn, attn_in=norm, ffn_in=norm)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm)
