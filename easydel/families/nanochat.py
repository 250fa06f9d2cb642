"""nanochat (Karpathy 2025, github.com/karpathy/nanochat): norms without parameters, also on the embeddings."""

from __future__ import annotations

from dataclasses import dataclass, fields

import jax

from easydel.families import llama as base
from easydel.families._parts import (
    MLP,
    Block,
    Decoder,
    Embed,
    Head,
    HFConfig,
    QKNorm,
    RMSNorm,
    Rope,
    family,
    rope_from_settings,
)

NAMES = base.NAMES.extended({"up_proj": "fc1", "down_proj": "fc2"})


@dataclass(frozen=True)
class Backwards(Rope):
    """A rope that rotates in the opposite direction."""

    def angles(self, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        cos, sin = super().angles(positions_BT)
        return cos, -sin


@family("nanochat", NAMES)
def nanochat(c: HFConfig) -> Decoder:
    norm, bias = RMSNorm(c.rms_norm_eps, scaled=False), c.attention_bias
    rope = rope_from_settings(c.rope(), c.hidden_size // c.num_attention_heads)
    position = Backwards(*(getattr(rope, field.name) for field in fields(rope)))
    mixer = base.attention(c, position=position, biased=bias, norms=QKNorm(norm, rotated=True))
    block = Block(mixer, MLP(c.intermediate_size, c.hidden_act, bias=False), attn_in=norm, ffn_in=norm)
    head = Head(c.tie_word_embeddings, softcap=c.final_logit_softcapping)
    blocks = [block] * c.num_hidden_layers
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm, head=head, embed=Embed(norm=norm))
