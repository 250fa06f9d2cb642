"""Persimmon (Adept 2023, adept.ai/blog/persimmon-8b): half-rotated heads with norms, squared ReLUs, biases."""

from easydel.families import bloom, llama as base
from easydel.families._parts import MLP, Block, Decoder, HFConfig, LayerNorm, Names, QKNorm, family, grouped

RENAMES = bloom.LINEAR | {r"model\.norm": "model.final_layernorm", "q_norm": "q_layernorm", "k_norm": "k_layernorm"}


def names(c: HFConfig) -> Names:
    return base.NAMES.extended(RENAMES, fused=bloom.fused(grouped(c.num_attention_heads)))


@family("persimmon", names)
def persimmon(c: HFConfig) -> Decoder:
    norm, heads = LayerNorm(c.layer_norm_eps), c.num_attention_heads
    mixer = base.attention(c, kv=heads, biased=True, norms=QKNorm(norm) if c.qk_layernorm else None)
    block = Block(mixer, MLP(c.intermediate_size, c.hidden_act), attn_in=norm, ffn_in=norm)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm)
