"""Gemma 2 (Gemma Team 2024, arXiv:2408.00118): norms around each part, capped scores and logits, sliding layers."""

from collections.abc import Sequence

from easydel.families import gemma
from easydel.families._layers import alternating, windows
from easydel.families._parts import GLU, Block, Decoder, Embed, Head, HFConfig, Part, family
from easydel.families.llama import NAMES as LLAMA, attention

NAMES = LLAMA.extended(
    {
        "post_attention_layernorm": "pre_feedforward_layernorm",
        "attn_output_layernorm": "post_attention_layernorm",
        "mlp_output_layernorm": "post_feedforward_layernorm",
    }
)


def sandwich(c: HFConfig, mixers: Sequence[Part]) -> Decoder:
    """Returns Gemma's decoder around `mixers`, with four norms in each block."""
    norm, ffn = gemma.norm(c), GLU(c.intermediate_size, c.hidden_activation)
    blocks = [Block(mixer, ffn, attn_in=norm, attn_out=norm, ffn_in=norm, ffn_out=norm) for mixer in mixers]
    head = Head(c.tie_word_embeddings, softcap=c.final_logit_softcapping)
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm, head=head, embed=Embed(scale=c.hidden_size**0.5))


@family("gemma2", NAMES)
def gemma2(c: HFConfig) -> Decoder:
    choices = {"biased": c.attention_bias, "scale": c.query_pre_attn_scalar**-0.5}
    choices |= {"softcap": c.attn_logit_softcapping}
    return sandwich(c, [attention(c, window=window, **choices) for window in windows(c, alternating(c, 2))])
