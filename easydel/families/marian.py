"""Marian, OPUS-MT (Tiedemann & Thottingal 2020): BART with waves for positions; languages may have own tokens."""

from easydel.families._parts import Decoder, EncoderDecoder, HFConfig, family
from easydel.families.bart import IN_ANY_CASE, OF_ENCODER, alone, whole
from easydel.families.pegasus import CAUSAL_WITHOUT_WAVES, WITHOUT_WAVES, embed


def target_vocab(c: HFConfig) -> int:
    """How many tokens the decoder knows."""
    own = c.get("decoder_vocab_size")
    return c.vocab_size if own is None or c.share_encoder_decoder_embeddings else own


@family("marian", WITHOUT_WAVES, inert=IN_ANY_CASE, encoder_decoder=True)
def marian(c: HFConfig) -> EncoderDecoder:
    shared = c.tie_word_embeddings and c.share_encoder_decoder_embeddings
    return whole(c, embed(c), source_vocab=None if shared else c.vocab_size, vocab=target_vocab(c), shared=shared)


@family("marian", CAUSAL_WITHOUT_WAVES, inert=OF_ENCODER | IN_ANY_CASE)
def marian_decoder(c: HFConfig) -> Decoder:
    return alone(c, embed(c), vocab=target_vocab(c))
