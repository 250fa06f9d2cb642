"""Nemotron-4 and Minitron (Parmar et al. 2024, arXiv:2402.16819; arXiv:2407.14679): squared ReLUs, LayerNorms."""

from easydel.families import llama as base
from easydel.families._parts import MLP, Block, Decoder, HFConfig, LayerNorm, family


@family("nemotron", base.NAMES)
def nemotron(c: HFConfig) -> Decoder:
    norm, ffn = LayerNorm(c.norm_eps, offset=1.0), MLP(c.intermediate_size, c.hidden_act, bias=c.mlp_bias)
    mixer = base.attention(c, biased=c.attention_bias)
    block = Block(mixer, ffn, attn_in=norm, ffn_in=norm)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm)
