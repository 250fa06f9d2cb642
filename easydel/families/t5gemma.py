"""T5Gemma (Zhang et al. 2025, arXiv:2504.06225): encoder-decoders of two Gemma 2, which may differ in size."""

from typing import Any

from easydel.families import gemma
from easydel.families._layers import SLIDING, alternating
from easydel.families._parts import (
    GLU,
    Around,
    Block,
    Causal,
    CrossAttention,
    Embed,
    EncoderDecoder,
    Head,
    HFConfig,
    Names,
    ShiftRight,
    Tower,
    family,
)
from easydel.families.llama import attention

NAMES = Names(
    {
        "lm_head": "lm_head.out_proj",
        "input_layernorm": "pre_self_attn_layernorm",
        "attn_output_layernorm": "post_self_attn_layernorm",
        "cross_input_layernorm": "pre_cross_attn_layernorm",
        "cross_output_layernorm": "post_cross_attn_layernorm",
        "post_attention_layernorm": "pre_feedforward_layernorm",
        "mlp_output_layernorm": "post_feedforward_layernorm",
    },
    ignored=(r".*rotary_emb\.inv_freq",),
)
INERT = {
    "vocab_size": "each tower has its own",
    "encoder.final_logit_softcapping": "an encoder has no logits",
    "encoder.tie_word_embeddings": "an encoder has no head",
    "decoder.tie_word_embeddings": "the one outside counts",
    "encoder.is_decoder": "known by its place",
    "decoder.is_decoder": "known by its place",
}


def tower(c: HFConfig, cross: CrossAttention | None = None) -> Tower:
    """The encoder, or with `cross` the decoder: Gemma 2's blocks, norms around each part."""
    norm, ffn, size = gemma.norm(c), GLU(c.intermediate_size, c.hidden_activation), c.sliding_window
    sights = {SLIDING: Around(size, size) if cross is None else Causal(size)}
    own = cross and norm
    whole = Around() if cross is None else Causal()
    mixers = [attention(c, sight=sights.get(kind, whole), **scores(c)) for kind in alternating(c, 2)]
    blocks = tuple(
        Block(mixer, ffn, norm, norm, norm, norm, cross=cross, cross_in=own, cross_out=own) for mixer in mixers
    )
    return Tower(blocks, Embed(scale=c.hidden_size**0.5), norm, c.vocab_size, c.hidden_size)


def scores(c: HFConfig) -> dict[str, Any]:
    """What self-attention has beside heads and positions."""
    choices = {"biased": c.attention_bias, "softcap": c.attn_logit_softcapping}
    return choices | {"scale": c.query_pre_attn_scalar**-0.5}


@family("t5gemma", NAMES, inert=INERT, encoder_decoder=True)
def t5gemma(c: HFConfig) -> EncoderDecoder:
    encoder, decoder = c.inside("encoder"), c.inside("decoder")
    cross = CrossAttention(
        decoder.num_attention_heads,
        decoder.num_key_value_heads,
        decoder.head_dim,
        "qkvo" if decoder.attention_bias else "",
        scale=decoder.query_pre_attn_scalar**-0.5,
        softcap=decoder.attn_logit_softcapping,
        states=encoder.hidden_size,
    )
    return EncoderDecoder(
        vocab=decoder.vocab_size,
        features=decoder.hidden_size,
        encoder=tower(encoder),
        decoder=tower(decoder, cross),
        head=Head(c.tie_word_embeddings, softcap=decoder.final_logit_softcapping),
        shift=ShiftRight(decoder.get("bos_token_id", 2), decoder.pad_token_id),
        shared=False,
        max_length=min(encoder.max_position_embeddings, decoder.max_position_embeddings),
    )
