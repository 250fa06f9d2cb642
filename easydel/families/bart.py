"""BART (Lewis et al. 2020, arXiv:1910.13461): an encoder-decoder with norms after each part; or its decoder alone."""

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
    "attn_output_layernorm": "self_attn_layer_norm",
    "cross_output_layernorm": "encoder_attn_layer_norm",
    "mlp_output_layernorm": "final_layer_norm",
    r"mlp\.up_proj": "fc1",
    r"mlp\.down_proj": "fc2",
}
SHARED, ENCODER, DECODER = (
    f"model.{name}.weight" for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
)
NAMES = Names(
    {r"model\.embed_tokens": "model.shared", r"lm_head\.bias": "final_logits_bias"} | RENAMES,
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
    {"model": "model.decoder"} | RENAMES,
    # tensors that transformers keeps for an encoder, or the rest of one
    ignored=(r".*encoder_attn.*", r"(model\.)?(encoder\..*|shared\.weight|decoder\.version)", "final_logits_bias"),
    substitutes={DECODER: (SHARED,)},
)


def block(c: HFConfig, heads: int, ffn_dim: int, sight: Sight, cross: CrossAttention | None = None) -> Block:
    mixer = Attention(Heads(heads, heads, c.d_model // heads, biased="qkvo"), sight=sight)
    ffn = MLP(ffn_dim, c.activation_function)
    return Block(mixer, ffn, attn_out=NORM, ffn_out=NORM, residual=Post(), cross=cross, cross_out=cross and NORM)


def embed(c: HFConfig) -> Embed:
    scale = c.d_model**0.5 if c.scale_embedding else 1.0
    return Embed(Learned(c.max_position_embeddings, offset=2), NORM, scale)


@family("bart", NAMES, inert={"is_decoder": "there is a decoder in any case"}, encoder_decoder=True)
def bart(c: HFConfig) -> EncoderDecoder:
    heads = c.decoder_attention_heads
    cross = CrossAttention(heads, heads, c.d_model // heads, "qkvo")
    encoder = block(c, c.encoder_attention_heads, c.encoder_ffn_dim, Around())
    decoder = block(c, heads, c.decoder_ffn_dim, Causal(), cross)
    return EncoderDecoder(
        vocab=c.vocab_size,
        features=c.d_model,
        encoder=Tower((encoder,) * c.encoder_layers, embed(c)),
        decoder=Tower((decoder,) * c.decoder_layers, embed(c)),
        head=Head(c.tie_word_embeddings, bias=True),
        shift=ShiftRight(c.decoder_start_token_id, c.pad_token_id, from_inputs=True),
        shared=c.tie_word_embeddings,
        max_length=c.max_position_embeddings,
    )


@family(
    "bart",
    CAUSAL,
    inert=dict.fromkeys(("encoder_layers", "encoder_ffn_dim", "encoder_attention_heads"), "the encoder's")
    | {"is_decoder": "there is a decoder in any case"},
)
def bart_decoder(c: HFConfig) -> Decoder:
    decoder = block(c, c.decoder_attention_heads, c.decoder_ffn_dim, Causal())
    return Decoder(
        vocab=c.vocab_size,
        features=c.d_model,
        blocks=(decoder,) * c.decoder_layers,
        final_norm=None,
        head=Head(c.tie_word_embeddings),
        embed=embed(c),
        max_length=c.max_position_embeddings,
    )
