"""Granite 3 (Granite Team 2024, the Granite 3.0 technical report): Llama with a multiplier at each junction."""

from dataclasses import replace

from easydel.families import llama as base
from easydel.families._parts import GLU, Decoder, Embed, Head, HFConfig, Part, Sequential, family


def multiplied(c: HFConfig, ffn: Part) -> Decoder:
    """Returns Granite's decoder with `ffn` in each layer."""
    bias, layers = c.attention_bias, c.num_hidden_layers
    mixer = base.attention(c, bias=bias, out_bias=bias, scale=c.attention_multiplier)
    plain = base.pre_norm(c, [mixer] * layers, [ffn] * layers)
    return replace(
        plain,
        blocks=tuple(replace(block, residual=Sequential(c.residual_multiplier)) for block in plain.blocks),
        embed=Embed(scale=c.embedding_multiplier),
        head=Head(c.tie_word_embeddings, scale=1 / c.logits_scaling),
    )


@family("granite", base.NAMES)
def granite(c: HFConfig) -> Decoder:
    return multiplied(c, GLU(c.intermediate_size, c.hidden_act, c.mlp_bias))
