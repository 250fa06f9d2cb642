"""M2M-100 (Fan et al. 2020, arXiv:2010.11125), NLLB (2022, arXiv:2207.04672): mBART with waves for positions."""

from easydel.families._parts import Embed, EncoderDecoder, Head, HFConfig, Sinusoidal, family
from easydel.families.bart import scale, whole
from easydel.families.pegasus import WITHOUT_WAVES


@family("m2m_100", WITHOUT_WAVES, encoder_decoder=True)
def m2m_100(c: HFConfig) -> EncoderDecoder:
    waves = Sinusoidal(offset=c.pad_token_id + 1, endpoint=True)
    return whole(c, Embed(waves, scale=scale(c)), pre_norm=True, head=Head(c.tie_word_embeddings))
