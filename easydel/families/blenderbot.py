"""Blenderbot (Roller et al. 2020, arXiv:2004.13637): BART with norms before each part, for conversations."""

from easydel.families._parts import Decoder, Embed, EncoderDecoder, HFConfig, Learned, family
from easydel.families.bart import CAUSAL, IN_ANY_CASE, NAMES, OF_ENCODER, alone, scale, whole

OF_GENERATE = {"encoder_no_repeat_ngram_size": "a setting of `generate`"}


def embed(c: HFConfig) -> Embed:
    return Embed(Learned(c.max_position_embeddings), scale=scale(c))


@family("blenderbot", NAMES, inert=IN_ANY_CASE | OF_GENERATE, encoder_decoder=True)
def blenderbot(c: HFConfig) -> EncoderDecoder:
    return whole(c, embed(c), pre_norm=True)


@family("blenderbot", CAUSAL, inert=OF_ENCODER | IN_ANY_CASE | OF_GENERATE)
def blenderbot_decoder(c: HFConfig) -> Decoder:
    return alone(c, embed(c), pre_norm=True)
