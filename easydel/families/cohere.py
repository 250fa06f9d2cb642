"""Command R (Cohere 2024, the model card of CohereLabs/c4ai-command-r-v01): parallel blocks, scaled logits."""

from collections.abc import Sequence

from easydel.families._parts import (
    GLU,
    AnyNorm,
    Block,
    Decoder,
    Head,
    HFConfig,
    LayerNorm,
    Parallel,
    Part,
    QKNorm,
    family,
)
from easydel.families.llama import NAMES, attention


def parallel(
    c: HFConfig, mixers: Sequence[Part], ffns: Sequence[Part] | None = None, norm: AnyNorm | None = None
) -> Decoder:
    """Returns Command's decoder: `mixers` and `ffns`, one for each layer, with one norm before both."""
    norm = norm or LayerNorm(c.layer_norm_eps, biased=False)
    ffns = ffns or [GLU(c.intermediate_size, c.hidden_act)] * len(mixers)
    blocks = [Block(mixer, ffn, attn_in=norm, residual=Parallel()) for mixer, ffn in zip(mixers, ffns, strict=True)]
    head = Head(c.tie_word_embeddings, scale=c.get("logit_scale", 1.0))
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm, head=head)


@family("cohere", NAMES)
def cohere(c: HFConfig) -> Decoder:
    norm = QKNorm(LayerNorm(c.layer_norm_eps, biased=False), per_head=True) if c.use_qk_norm else None
    bias = c.attention_bias
    mixer = attention(c, interleaved=True, biased=bias, norms=norm)
    return parallel(c, [mixer] * c.num_hidden_layers)
