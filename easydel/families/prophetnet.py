"""ProphetNet (Qi et al. 2020, arXiv:2001.04063): BERT's blocks, whose decoder predicts in a stream beside its tokens.

Of its streams, which predict the next token and those after it, the first one's logits count here.
"""

from easydel.families._parts import (
    MLP,
    Around,
    Attention,
    Block,
    ConfigError,
    CrossAttention,
    Decoder,
    Embed,
    EncoderDecoder,
    Head,
    Heads,
    HFConfig,
    Learned,
    Names,
    Part,
    Post,
    Prediction,
    ShiftRight,
    Tower,
    TwoStreamAttention,
    family,
)
from easydel.families.bart import NORM

RENAMES = {
    "embed_positions": "position_embeddings",
    "embed_layernorm": "embeddings_layer_norm",
    "attn_output_layernorm": "self_attn_layer_norm",
    "cross_output_layernorm": "cross_attn_layer_norm",
    "mlp_output_layernorm": "feed_forward_layer_norm",
    r"mlp\.up_proj": "feed_forward.intermediate",
    r"mlp\.down_proj": "feed_forward.output",
    r"stream\.vectors": "ngram_embeddings",
    r"self_attn\.relative": "self_attn.relative_pos_embeddings",
    "q_proj": "query_proj",
    "k_proj": "key_proj",
    "v_proj": "value_proj",
    "o_proj": "out_proj",
    "embed_tokens": "word_embeddings",
}
WORDS = r"prophetnet\.((en|de)coder\.)?word_embeddings\.weight"  # copies of the tensor that is read
NAMES = Names({"model": "prophetnet"} | RENAMES, ignored=(WORDS,))
CAUSAL = Names(
    {"model": "prophetnet.decoder"} | RENAMES,
    ignored=(WORDS, r"prophetnet\.encoder\..*", r".*\.cross_attn(_layer_norm)?\..*"),
    substitutes={"prophetnet.decoder.word_embeddings.weight": ("prophetnet.word_embeddings.weight",)},
)
TIED = CAUSAL.extended({r"model\.embed_tokens": "prophetnet.word_embeddings"})
INERT = dict.fromkeys(("disable_ngram_loss", "eps"), "of transformers' loss")
INERT |= dict.fromkeys(("is_decoder", "add_cross_attention"), "there is a decoder in any case")
OF_ENCODER = dict.fromkeys(("num_encoder_layers", "encoder_ffn_dim", "num_encoder_attention_heads"), "the encoder's")


def embed(c: HFConfig, *, ahead: int = 0) -> Embed:
    """Positions count from the row behind the padding token's; the stream of predictions is one `ahead`."""
    first = c.pad_token_id + 1
    return Embed(Learned(c.max_position_embeddings - first - ahead, offset=first, ahead=ahead), NORM)


def block(c: HFConfig, mixer: Part, ffn_dim: int, cross: CrossAttention | None = None) -> Block:
    ffn, norm = MLP(ffn_dim, c.activation_function), cross and NORM
    return Block(mixer, ffn, attn_out=NORM, ffn_out=NORM, residual=Post(), cross=cross, cross_out=norm)


def stream(c: HFConfig) -> Prediction:
    if c.ngram < 1:
        raise ConfigError(f"ngram is {c.ngram}, expected at least 1 stream that predicts")
    return Prediction(c.ngram)


def predicting(c: HFConfig) -> TwoStreamAttention:
    heads = c.num_decoder_attention_heads
    return TwoStreamAttention(heads, c.hidden_size // heads, c.num_buckets, c.relative_max_distance)


@family("prophetnet", NAMES, inert=INERT, encoder_decoder=True)
def prophetnet(c: HFConfig) -> EncoderDecoder:
    heads, count = c.num_encoder_attention_heads, c.num_decoder_attention_heads
    attention = Attention(Heads(heads, heads, c.hidden_size // heads, biased="qkvo"), sight=Around())
    reader = block(c, attention, c.encoder_ffn_dim)
    cross = CrossAttention(count, count, c.hidden_size // count, "qkvo")
    writer = block(c, predicting(c), c.decoder_ffn_dim, cross)
    return EncoderDecoder(
        vocab=c.vocab_size,
        features=c.hidden_size,
        encoder=Tower((reader,) * c.num_encoder_layers, embed(c)),
        decoder=Tower((writer,) * c.num_decoder_layers, embed(c, ahead=1), stream=stream(c)),
        head=Head(c.tie_word_embeddings),
        shift=ShiftRight(c.decoder_start_token_id, c.pad_token_id),
        shared=c.tie_word_embeddings,
        max_length=c.max_position_embeddings,
    )


@family("prophetnet", lambda c: TIED if c.tie_word_embeddings else CAUSAL, inert=INERT | OF_ENCODER)
def prophetnet_decoder(c: HFConfig) -> Decoder:
    return Decoder(
        vocab=c.vocab_size,
        features=c.hidden_size,
        blocks=(block(c, predicting(c), c.decoder_ffn_dim),) * c.num_decoder_layers,
        final_norm=None,
        head=Head(c.tie_word_embeddings),
        embed=embed(c, ahead=1),
        max_length=c.max_position_embeddings,
        stream=stream(c),
    )
