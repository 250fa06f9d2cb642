"""Gemma (Gemma Team 2024, arXiv:2403.08295): scaled embeddings, norms stored as scale - 1, gated tanh GELU."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family
from easydel.families.llama import NAMES, attention
from easydel.layers.block import Block
from easydel.layers.embed import Embed
from easydel.layers.mlp import GLU
from easydel.layers.norm import RMSNorm

DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
}


def norm(c: HFConfig) -> RMSNorm:
    return RMSNorm(c.rms_norm_eps, offset=1.0)


@family("gemma", NAMES, defaults=DEFAULTS, inert=("hidden_activation",))
def gemma(c: HFConfig) -> Decoder:
    act = "gelu_pytorch_tanh" if c.hidden_act == "gelu" else c.hidden_act  # the first files say gelu and mean tanh
    mixer = attention(c, bias=c.attention_bias, out_bias=c.attention_bias)
    block = Block(mixer, GLU(c.intermediate_size, act), attn_in=norm(c), ffn_in=norm(c))
    embed = Embed(scale=c.hidden_size**0.5)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm(c), embed=embed)
