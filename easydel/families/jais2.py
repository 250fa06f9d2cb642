"""Jais 2 (Inception 2025, the model card of inceptionai/Jais-2-8B-Chat): LayerNorms, squared ReLUs, biases."""

from easydel.families import llama as base
from easydel.families._parts import MLP, Block, Decoder, HFConfig, LayerNorm, family


@family("jais2", base.NAMES)
def jais2(c: HFConfig) -> Decoder:
    norm, ffn = LayerNorm(c.layer_norm_eps), MLP(c.intermediate_size, c.hidden_act, c.mlp_bias)
    mixer = base.attention(c, biased=c.attention_bias)
    block = Block(mixer, ffn, attn_in=norm, ffn_in=norm)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm)
