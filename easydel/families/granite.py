"""Granite 3 (Granite Team 2024, the Granite 3.0 technical report): Llama with a multiplier at each junction."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from easydel.families import llama as base
from easydel.families._parts import GLU, Attention, Decoder, Embed, Head, HFConfig, Part, Sequential, family


def attention(c: HFConfig, **choices: Any) -> Attention:
    """Returns Llama's attention with a scale of its own; `choices` override."""
    own = {"biased": c.attention_bias, "scale": c.attention_multiplier}
    return base.attention(c, **(own | choices))


def multiplied(c: HFConfig, ffn: Part, mixers: Sequence[Part] | None = None) -> Decoder:
    """Returns Granite's decoder with `ffn` in each layer, and its attention unless `mixers` are given."""
    chosen: Sequence[Part] = mixers or [attention(c)] * c.num_hidden_layers
    plain = base.pre_norm(c, chosen, [ffn] * len(chosen))
    return replace(
        plain,
        blocks=tuple(replace(block, residual=Sequential(c.residual_multiplier)) for block in plain.blocks),
        embed=Embed(scale=c.embedding_multiplier),
        head=Head(c.tie_word_embeddings, scale=1 / c.logits_scaling),
    )


@family("granite", base.NAMES)
def granite(c: HFConfig) -> Decoder:
    return multiplied(c, GLU(c.intermediate_size, c.hidden_act, c.mlp_bias))
