"""Pegasus (Zhang et al. 2020, arXiv:1912.08777): BART with norms before each part, and waves for positions."""

from easydel.families._parts import Decoder, Embed, EncoderDecoder, HFConfig, Sinusoidal, family
from easydel.families.bart import CAUSAL, IN_ANY_CASE, NAMES, OF_ENCODER, alone, scale, whole

WAVES = (r"(model\.)?(en|de)coder\.embed_positions\.weights?",)  # tables of what can be computed
WITHOUT_WAVES = NAMES.extended(ignored=WAVES)
CAUSAL_WITHOUT_WAVES = CAUSAL.extended(ignored=WAVES)


def embed(c: HFConfig) -> Embed:
    return Embed(Sinusoidal(), scale=scale(c))


@family("pegasus", WITHOUT_WAVES, inert=IN_ANY_CASE, encoder_decoder=True)
def pegasus(c: HFConfig) -> EncoderDecoder:
    return whole(c, embed(c), pre_norm=True)


@family("pegasus", CAUSAL_WITHOUT_WAVES, inert=OF_ENCODER | IN_ANY_CASE)
def pegasus_decoder(c: HFConfig) -> Decoder:
    return alone(c, embed(c), pre_norm=True)
