"""BigBird-Pegasus (Zaheer et al. 2020, arXiv:2007.14062): Pegasus whose encoder sees blocks; or its decoder alone."""

from dataclasses import replace

from easydel.families._parts import (
    Around,
    Attention,
    Blocks,
    Decoder,
    Embed,
    EncoderDecoder,
    Head,
    Heads,
    HFConfig,
    Learned,
    ShiftRight,
    family,
)
from easydel.families.bart import (
    CAUSAL,
    DECODER,
    IN_ANY_CASE,
    NAMES,
    OF_ENCODER,
    SHARED,
    alone,
    reading,
    scale,
    whole,
)

SELF = "model.encoder.layers.*.self_attn"
PROJECTIONS = {"q_proj": "self.query", "k_proj": "self.key", "v_proj": "self.value", "o_proj": "output"}
WHOLE = NAMES.extended(
    {rf"model\.encoder\.layers\.\*\.self_attn\.{ours}": f"{SELF}.{theirs}" for ours, theirs in PROJECTIONS.items()}
    | {r"model\.(en|de)coder\.norm": r"model.\1coder.layernorm_embedding"}
)
ALONE = CAUSAL.extended(
    {r"model\.norm": "model.decoder.layernorm_embedding"}, substitutes={"lm_head.weight": (DECODER, SHARED)}
)
SPARSE = dict.fromkeys(("attention_type", "block_size", "num_random_blocks"), "of the encoder's sparse attention")


def embed(c: HFConfig) -> Embed:
    return Embed(Learned(c.max_position_embeddings), scale=scale(c))


@family("bigbird_pegasus", WHOLE, inert=IN_ANY_CASE, encoder_decoder=True)
def bigbird_pegasus(c: HFConfig) -> EncoderDecoder:
    count, biased = c.encoder_attention_heads, "qkvo" if c.use_bias else ""
    heads, blocks = Heads(count, count, c.d_model // count, biased=biased), Blocks(c.block_size, c.num_random_blocks)
    sparse = c.only("attention_type", "block_sparse", "original_full") == "block_sparse"
    mixer = Attention(heads, blocks if sparse else None, Around())
    shift = ShiftRight(c.decoder_start_token_id, c.pad_token_id, from_inputs=True)
    return reading(whole(c, embed(c), pre_norm=True, biased=biased, shift=shift), [mixer] * c.encoder_layers)


@family("bigbird_pegasus", ALONE, inert=OF_ENCODER | IN_ANY_CASE | SPARSE)
def bigbird_pegasus_decoder(c: HFConfig) -> Decoder:
    record = alone(c, embed(c), pre_norm=True, biased="qkvo" if c.use_bias else "")
    return replace(record, head=Head(tied=False))  # transformers ties no head to the decoder alone
