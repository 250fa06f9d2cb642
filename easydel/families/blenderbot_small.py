"""Blenderbot 90M (Roller et al. 2020, arXiv:2004.13637): BART whose decoder adds positions after the norm."""

from easydel.families._parts import Decoder, Embed, EncoderDecoder, HFConfig, Learned, family
from easydel.families.bart import CAUSAL, IN_ANY_CASE, NAMES, NORM, OF_ENCODER, alone, scale, whole


def decoder_embed(c: HFConfig) -> Embed:
    """Without a scale, which the norm of tokens alone would undo."""
    return Embed(Learned(c.max_position_embeddings), NORM, normed="tokens")


@family("blenderbot-small", NAMES, inert=IN_ANY_CASE, encoder_decoder=True)
def blenderbot_small(c: HFConfig) -> EncoderDecoder:
    return whole(c, Embed(Learned(c.max_position_embeddings), NORM, scale(c)), decoder_embed(c))


@family(
    "blenderbot-small",
    CAUSAL,
    inert=OF_ENCODER | IN_ANY_CASE | {"scale_embedding": "the norm of tokens alone undoes it"},
)
def blenderbot_small_decoder(c: HFConfig) -> Decoder:
    return alone(c, decoder_embed(c))
