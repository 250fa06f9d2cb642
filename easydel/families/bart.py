"""BART (Lewis et al. 2020, arXiv:1910.13461): an encoder-decoder with norms after each part; or its decoder alone."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from easydel.families._parts import (
    MLP,
    Around,
    Attention,
    Block,
    Causal,
    CrossAttention,
    Decoder,
    Embed,
    EncoderDecoder,
    Head,
    Heads,
    HFConfig,
    LayerNorm,
    Learned,
    Names,
    Part,
    Post,
    ShiftRight,
    Sight,
    Tower,
    family,
    one_row,
)

NORM = LayerNorm(1e-5)  # torch's default; there is no key for it
RENAMES = {
    "o_proj": "out_proj",
    "cross_attn": "encoder_attn",
    "embed_layernorm": "layernorm_embedding",
    "(input|attn_output)_layernorm": "self_attn_layer_norm",
    "cross_(input|output)_layernorm": "encoder_attn_layer_norm",
    "(post_attention|mlp_output)_layernorm": "final_layer_norm",
    r"mlp\.up_proj": "fc1",
    r"mlp\.down_proj": "fc2",
}
SHARED, ENCODER, DECODER = (
    f"model.{name}.weight" for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
)
NAMES = Names(
    {
        r"model\.embed_tokens": "model.shared",
        r"model\.(en|de)coder\.norm": r"model.\1coder.layer_norm",
        r"lm_head\.bias": "final_logits_bias",
    }
    | RENAMES,
    ignored=(
        r"(model\.)?(shared|(en|de)coder\.embed_tokens)\.weight",  # copies of the tensor that is read
        r"(model\.)?(en|de)coder\.version",
        r"classification_head\..*",
    ),
    reshaped={"final_logits_bias": one_row},
    substitutes={SHARED: (DECODER, ENCODER), ENCODER: (SHARED,), DECODER: (SHARED,)},
    optional=("final_logits_bias",),
)
CAUSAL = Names(
    {"model": "model.decoder", r"model\.norm": "model.decoder.layer_norm"} | RENAMES,
    # tensors that transformers keeps for an encoder, or the rest of one
    ignored=(r".*encoder_attn.*", r"(model\.)?(encoder\..*|shared\.weight|decoder\.version)", "final_logits_bias"),
    substitutes={DECODER: (SHARED,)},
)
IN_ANY_CASE = {"is_decoder": "there is a decoder in any case"}
OF_ENCODER = dict.fromkeys(("encoder_layers", "encoder_ffn_dim", "encoder_attention_heads"), "the encoder's")


def block(
    c: HFConfig,
    heads: int,
    ffn_dim: int,
    sight: Sight,
    cross: CrossAttention | None = None,
    *,
    pre_norm: bool = False,
    biased: str = "qkvo",
) -> Block:
    """A layer of either tower, with norms after each part, or with `pre_norm` before."""
    mixer = Attention(Heads(heads, heads, c.d_model // heads, biased=biased), sight=sight)
    ffn, own = MLP(ffn_dim, c.activation_function), cross and NORM
    if pre_norm:
        return Block(mixer, ffn, attn_in=NORM, ffn_in=NORM, cross=cross, cross_in=own)
    return Block(mixer, ffn, attn_out=NORM, ffn_out=NORM, residual=Post(), cross=cross, cross_out=own)


def scale(c: HFConfig) -> float:
    """What token vectors are multiplied with."""
    return c.d_model**0.5 if c.scale_embedding else 1.0


def embed(c: HFConfig) -> Embed:
    return Embed(Learned(c.max_position_embeddings, offset=2), NORM, scale(c))


def whole(
    c: HFConfig,
    encoder: Embed,
    decoder: Embed | None = None,
    *,
    pre_norm: bool = False,
    source_vocab: int | None = None,
    biased: str = "qkvo",
    **choices: Any,
) -> EncoderDecoder:
    """Both towers around their embeddings (one for both by default); `choices` override the model's fields.

    With `pre_norm`, norms stand before each part and after the last layer. `source_vocab` is the size of the encoder's
    table, if it has its own. `biased` names the projections of attention that have a bias.
    """
    heads, final = c.decoder_attention_heads, NORM if pre_norm else None
    cross = CrossAttention(heads, heads, c.d_model // heads, biased)
    reader = block(c, c.encoder_attention_heads, c.encoder_ffn_dim, Around(), pre_norm=pre_norm, biased=biased)
    writer = block(c, heads, c.decoder_ffn_dim, Causal(), cross, pre_norm=pre_norm, biased=biased)
    own = {
        "vocab": c.vocab_size,
        "features": c.d_model,
        "encoder": Tower((reader,) * c.encoder_layers, encoder, final, source_vocab),
        "decoder": Tower((writer,) * c.decoder_layers, decoder or encoder, final),
        "head": Head(c.tie_word_embeddings, bias=True, fixed=True),
        "shift": ShiftRight(c.get("decoder_start_token_id"), c.pad_token_id),
        "shared": c.tie_word_embeddings,
        "max_length": c.get("max_position_embeddings"),
    }
    return EncoderDecoder(**own | choices)


def reading(record: EncoderDecoder, mixers: Sequence[Part]) -> EncoderDecoder:
    """Returns the model with other mixers in its encoder, one for each layer."""
    blocks = tuple(replace(block, mixer=mixer) for block, mixer in zip(record.encoder.blocks, mixers, strict=True))
    return replace(record, encoder=replace(record.encoder, blocks=blocks))


def alone(
    c: HFConfig, embed: Embed, *, pre_norm: bool = False, vocab: int | None = None, biased: str = "qkvo"
) -> Decoder:
    """The decoder without cross-attention."""
    heads, width = c.decoder_attention_heads, c.decoder_ffn_dim
    layer = block(c, heads, width, Causal(), pre_norm=pre_norm, biased=biased)
    return Decoder(
        vocab=vocab or c.vocab_size,
        features=c.d_model,
        blocks=(layer,) * c.decoder_layers,
        final_norm=NORM if pre_norm else None,
        head=Head(c.tie_word_embeddings),
        embed=embed,
        max_length=c.get("max_position_embeddings") or embed.longest,
    )


@family("bart", NAMES, inert=IN_ANY_CASE, encoder_decoder=True)
def bart(c: HFConfig) -> EncoderDecoder:
    return whole(c, embed(c), shift=ShiftRight(c.decoder_start_token_id, c.pad_token_id, from_inputs=True))


@family("bart", CAUSAL, inert=OF_ENCODER | IN_ANY_CASE)
def bart_decoder(c: HFConfig) -> Decoder:
    return alone(c, embed(c))
