"""T5 (Raffel et al. 2020, arXiv:1910.10683), T5 v1.1, Flan-T5: biases by relative position, scores are not scaled."""

from easydel.families._parts import (
    GLU,
    MLP,
    Around,
    Attention,
    Block,
    CrossAttention,
    Embed,
    EncoderDecoder,
    Head,
    Heads,
    HFConfig,
    Names,
    Part,
    RelativeBias,
    RMSNorm,
    ShiftRight,
    Tower,
    Weights,
    family,
)

BIAS = "relative_attention_bias"  # one table for all layers of a tower
SELF = "layer.0.SelfAttention"


def in_feed_forwards(ours: str, theirs: str) -> dict[str, str]:
    """Returns renames for a feed-forward: it is the last of two layers in the encoder, of three in the decoder."""
    towers = {"encoder": "layer.1", "decoder": "layer.2"}
    return {rf"model\.{name}\.layers\.\*\.{ours}": f"{name}.block.*.{last}.{theirs}" for name, last in towers.items()}


TOKENS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
NAMES = Names(
    {
        r"model\.embed_tokens": "shared",
        r"model\.(en|de)coder\.norm": r"\1coder.final_layer_norm",
        r"model\.(en|de)coder\.layers": r"\1coder.block",
        **{rf"model\.{name}\.{BIAS}": f"{name}.block.0.{SELF}.{BIAS}" for name in ("encoder", "decoder")},
        r"self_attn\.([qkvo])_proj": rf"{SELF}.\1",
        r"self_attn\.relative_attention_bias": rf"{SELF}.relative_attention_bias",
        r"cross_attn\.([qkvo])_proj": r"layer.1.EncDecAttention.\1",
        "input_layernorm": "layer.0.layer_norm",
        "cross_input_layernorm": "layer.1.layer_norm",
        **in_feed_forwards("post_attention_layernorm", "layer_norm"),
        **in_feed_forwards(r"mlp\.gate_proj", "DenseReluDense.wi_0"),
        **in_feed_forwards(r"mlp\.down_proj", "DenseReluDense.wo"),
    },
    # the decoder's first layer once had a bias table for cross-attention too, which nothing reads
    ignored=(r"(en|de)coder\.embed_tokens\.weight", r".*EncDecAttention\.relative_attention_bias\.weight"),
    # as in transformers, a head or an embedding that the file lacks is tied, whatever the config says
    substitutes={"lm_head.weight": ("shared.weight", *TOKENS), "shared.weight": (*TOKENS, "lm_head.weight")},
)


def feed_forward(c: HFConfig) -> GLU | MLP:
    """Returns the feed-forward. transformers saves `dense_act_fn` and `is_gated_act`, made from `feed_forward_proj`."""
    gate, _, act = c.feed_forward_proj.rpartition("-")
    act = c.get("dense_act_fn") or ("gelu_new" if c.feed_forward_proj == "gated-gelu" else act)
    return GLU(c.d_ff, act) if c.get("is_gated_act", gate == "gated") else MLP(c.d_ff, act, bias=False)


def names(c: HFConfig) -> Names:
    up = "wi_1" if isinstance(feed_forward(c), GLU) else "wi"
    return NAMES.extended(in_feed_forwards(r"mlp\.up_proj", f"DenseReluDense.{up}"))


def bias(c: HFConfig, *, bidirectional: bool, shared: str | None = BIAS) -> RelativeBias:
    buckets, distance = c.relative_attention_num_buckets, c.relative_attention_max_distance
    return RelativeBias(c.num_heads, buckets, distance, bidirectional, shared)


def heads(c: HFConfig) -> Heads:
    return Heads(c.num_heads, c.num_heads, c.d_kv)


def whole(
    c: HFConfig,
    head: Head,
    shared: str | None = BIAS,
    ffn: GLU | MLP | None = None,
    around: Part | None = None,
) -> EncoderDecoder:
    """Both towers, with one table of biases for all layers of each, or (`shared` None) one for each layer.

    The encoder's mixer is `around`, by default attention to everything.
    """
    norm, ffn = RMSNorm(c.layer_norm_epsilon), ffn or feed_forward(c)
    whole = Attention(heads(c), bias(c, bidirectional=True, shared=shared), Around(), Weights(1.0))
    behind = Attention(heads(c), bias(c, bidirectional=False, shared=shared), weights=Weights(1.0))
    cross = CrossAttention(c.num_heads, c.num_heads, c.d_kv, scale=1.0)
    encoder = Block(around or whole, ffn, attn_in=norm, ffn_in=norm)
    decoder = Block(behind, ffn, attn_in=norm, ffn_in=norm, cross=cross, cross_in=norm)
    return EncoderDecoder(
        vocab=c.vocab_size,
        features=c.d_model,
        encoder=Tower((encoder,) * c.num_layers, Embed(), norm),
        decoder=Tower((decoder,) * (c.get("num_decoder_layers") or c.num_layers), Embed(), norm),
        head=head,
        shift=ShiftRight(c.get("decoder_start_token_id"), c.pad_token_id),
    )


def head(c: HFConfig) -> Head:
    # Only tied heads read states times d_model ** -0.5. transformers saves that choice, and calls every head tied.
    tied = c.get("scale_decoder_outputs", c.get("tie_word_embeddings", True))
    return Head(tied, scale=c.d_model**-0.5 if tied else 1.0)


@family("t5", names, encoder_decoder=True)
def t5(c: HFConfig) -> EncoderDecoder:
    return whole(c, head(c))
