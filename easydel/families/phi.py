"""Phi-1, 1.5 and 2 (Gunasekar et al. 2023, arXiv:2306.11644; Li et al. 2023, arXiv:2309.05463): parallel blocks."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family
from easydel.families.llama import NAMES as LLAMA
from easydel.families.llama import attention
from easydel.layers.attention import QKNorm
from easydel.layers.block import Block
from easydel.layers.embed import Head
from easydel.layers.mlp import MLP
from easydel.layers.norm import LayerNorm
from easydel.layers.residual import Parallel

RENAMES = {r"model\.norm": "model.final_layernorm", "o_proj": "dense", "up_proj": "fc1", "down_proj": "fc2"}
NAMES = LLAMA.extended(RENAMES | {"q_norm": "q_layernorm", "k_norm": "k_layernorm"})
SIZES = {"vocab_size": 51200, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24}
OTHERS = {"num_attention_heads": 32, "hidden_act": "gelu_new", "max_position_embeddings": 2048, "layer_norm_eps": 1e-5}
SWITCHES = {"partial_rotary_factor": 0.5, "qk_layernorm": False, "tie_word_embeddings": False}
DEFAULTS = SIZES | OTHERS | SWITCHES


@family("phi", NAMES, defaults=DEFAULTS)
def phi(c: HFConfig) -> Decoder:
    norm = LayerNorm(c.layer_norm_eps)
    mixer = attention(c, bias=True, out_bias=True, qk_norm=QKNorm(norm) if c.qk_layernorm else None)
    block = Block(mixer, MLP(c.intermediate_size, c.hidden_act), attn_in=norm, residual=Parallel())
    head = Head(c.tie_word_embeddings, bias=True)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm, head=head)
