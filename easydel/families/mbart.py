"""mBART (Liu et al. 2020, arXiv:2001.08210): BART with norms before each part; a language's token comes first."""

from easydel.families._parts import Decoder, EncoderDecoder, HFConfig, WrapLast, family
from easydel.families.bart import CAUSAL, IN_ANY_CASE, NAMES, OF_ENCODER, alone, embed, whole


@family("mbart", NAMES, inert=IN_ANY_CASE, encoder_decoder=True)
def mbart(c: HFConfig) -> EncoderDecoder:
    return whole(c, embed(c), pre_norm=True, shift=WrapLast(c.get("decoder_start_token_id"), c.pad_token_id))


@family("mbart", CAUSAL, inert=OF_ENCODER | IN_ANY_CASE)
def mbart_decoder(c: HFConfig) -> Decoder:
    return alone(c, embed(c), pre_norm=True)
