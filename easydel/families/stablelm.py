"""StableLM 2 (Bellagente et al. 2024, arXiv:2402.17834): LayerNorms, partial rope, and for 12B a norm per head."""

from __future__ import annotations

from dataclasses import replace

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family
from easydel.families.llama import NAMES as LLAMA
from easydel.families.llama import attention
from easydel.layers.attention import QKNorm
from easydel.layers.block import Block
from easydel.layers.mlp import GLU
from easydel.layers.norm import LayerNorm
from easydel.layers.residual import Parallel

NORMS = {"q_norm": "q_layernorm.norms", "k_norm": "k_layernorm.norms"}
NAMES = LLAMA.extended(NORMS, listed=tuple(NORMS.values()))
SIZES = {"vocab_size": 50304, "hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": 32}
HEADS = {"num_attention_heads": 32, "num_key_value_heads": 32, "partial_rotary_factor": 0.25}
OTHERS = {"hidden_act": "silu", "max_position_embeddings": 4096, "layer_norm_eps": 1e-5}
SWITCHES = dict.fromkeys(("use_qkv_bias", "qk_layernorm", "use_parallel_residual", "tie_word_embeddings"), False)


@family("stablelm", NAMES, defaults=SIZES | HEADS | OTHERS | SWITCHES)
def stablelm(c: HFConfig) -> Decoder:
    norm = LayerNorm(c.layer_norm_eps)
    qk_norm = QKNorm(LayerNorm(c.layer_norm_eps, biased=False), per_head=True) if c.qk_layernorm else None
    mixer, ffn = attention(c, bias=c.use_qkv_bias, qk_norm=qk_norm), GLU(c.intermediate_size, c.hidden_act)
    block = Block(mixer, ffn, attn_in=norm, ffn_in=norm)
    if c.use_parallel_residual:
        block = replace(block, ffn_in=None, residual=Parallel())
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm)
