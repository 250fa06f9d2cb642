"""Granite 3 (Granite Team 2024, the Granite 3.0 technical report): Llama with a multiplier at each junction."""

from __future__ import annotations

from dataclasses import replace

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family
from easydel.families import llama as base
from easydel.layers.embed import Embed, Head

MULTIPLIERS = ("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier")


@family("granite", base.NAMES, defaults=base.DEFAULTS | dict.fromkeys(MULTIPLIERS, 1.0))
def granite(c: HFConfig) -> Decoder:
    bias, scale = c.attention_bias, c.attention_multiplier
    mixer = base.attention(c, bias=bias, out_bias=bias, scale=scale)
    plain = base.pre_norm(c, [mixer] * c.num_hidden_layers, bias=c.mlp_bias)
    return replace(
        plain,
        blocks=tuple(replace(block, residual_scale=c.residual_multiplier) for block in plain.blocks),
        embed=Embed(scale=c.embedding_multiplier),
        head=Head(c.tie_word_embeddings, scale=1 / c.logits_scaling),
    )
