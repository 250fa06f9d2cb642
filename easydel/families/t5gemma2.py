"""T5Gemma 2 without images (Google 2025, arXiv:2512.14856): two of Gemma 3, the decoder with one attention to both."""

from collections.abc import Sequence

from easydel.families import gemma
from easydel.families._layers import SLIDING, alternating, ropes
from easydel.families._parts import (
    GLU,
    Around,
    Attention,
    Block,
    Causal,
    Embed,
    EncoderDecoder,
    Head,
    HFConfig,
    Merged,
    Part,
    QKNorm,
    ShiftRight,
    Sight,
    Tower,
    family,
)
from easydel.families.llama import attention
from easydel.families.t5gemma import NAMES as TWO_TABLES

NAMES = TWO_TABLES.extended(
    {r"model\.embed_tokens": "model.encoder.embed_tokens"},
    ignored=(
        r"model\.encoder\.(vision_tower|multi_modal_projector)\..*",
        r"model\.(en|de)coder\.embed_tokens\.eoi_embedding",  # of the token after an image
        r"model\.decoder\.embed_tokens\.weight",  # a copy of the encoder's, or the tensor that is read
    ),
)
INERT = {
    "encoder.mm_tokens_per_image": "images are not read",
    "encoder.tie_word_embeddings": "the one outside counts",
    "encoder.text_config.tie_word_embeddings": "the one outside counts",
    "encoder.text_config.final_logit_softcapping": "an encoder has no logits",
    "decoder.tie_word_embeddings": "the one outside counts",
}


def mixers(c: HFConfig, whole: Sight, window: Sight) -> list[Attention]:
    rope, norms, scale = ropes(c, "rope_local_base_freq"), QKNorm(gemma.norm(c)), c.query_pre_attn_scalar**-0.5
    sights = {SLIDING: window}
    return [
        attention(c, rope=rope[kind], sight=sights.get(kind, whole), norms=norms, biased=c.attention_bias, scale=scale)
        for kind in alternating(c, c.get("sliding_window_pattern", 6))
    ]


def tower(c: HFConfig, mixers: Sequence[Part], vocab: int | None) -> Tower:
    """Returns Gemma's blocks around `mixers`; `vocab` is the size of the tower's own table, if it has one."""
    norm, ffn = gemma.norm(c), GLU(c.intermediate_size, c.hidden_activation)
    blocks = tuple(Block(mixer, ffn, norm, norm, norm, norm) for mixer in mixers)
    return Tower(blocks, Embed(scale=c.hidden_size**0.5), norm, vocab)


@family("t5gemma2", NAMES, inert=INERT, encoder_decoder=True)
def t5gemma2(c: HFConfig) -> EncoderDecoder:
    encoder, decoder, tied = c.inside("encoder").inside("text_config"), c.inside("decoder"), c.tie_word_embeddings
    images = c.inside("encoder").inside("vision_config")
    _ = [images.get(key) for key in images]  # read, and not used
    vocab, size = encoder.only("vocab_size", decoder.vocab_size), encoder.sliding_window
    around = mixers(encoder, Around(), Around((size + 1) // 2 - 1, size // 2))
    behind = [Merged(own) for own in mixers(decoder, Causal(), Causal(decoder.sliding_window))]
    return EncoderDecoder(
        vocab=vocab,
        features=decoder.hidden_size,
        encoder=tower(encoder, around, None if tied else vocab),
        decoder=tower(decoder, behind, None if tied else vocab),
        head=Head(tied, softcap=decoder.final_logit_softcapping),
        shift=ShiftRight(decoder.get("bos_token_id", 2), decoder.pad_token_id),
        shared=tied,
        max_length=min(encoder.max_position_embeddings, decoder.max_position_embeddings),
    )
