"""PLBART (Ahmad et al. 2021, arXiv:2103.06333): BART for programs, whose language is the last token as in mBART."""

from easydel.families._parts import Decoder, EncoderDecoder, HFConfig, WrapLast, family
from easydel.families.bart import CAUSAL, IN_ANY_CASE, NAMES, OF_ENCODER, alone, embed, whole


@family("plbart", NAMES, inert=IN_ANY_CASE, encoder_decoder=True)
def plbart(c: HFConfig) -> EncoderDecoder:
    return whole(c, embed(c), shift=WrapLast(c.get("decoder_start_token_id"), c.pad_token_id))


@family("plbart", CAUSAL, inert=OF_ENCODER | IN_ANY_CASE)
def plbart_decoder(c: HFConfig) -> Decoder:
    return alone(c, embed(c))
