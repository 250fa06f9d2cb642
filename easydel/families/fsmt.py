"""fairseq's WMT 19 (Ng et al. 2019, arXiv:1907.06616): Marian with other waves, a vocabulary for each language."""

from easydel.families._parts import Embed, EncoderDecoder, Head, HFConfig, Sinusoidal, family
from easydel.families.bart import scale, whole
from easydel.families.pegasus import WITHOUT_WAVES

NAMES = WITHOUT_WAVES.extended({"lm_head": "model.decoder.output_projection"})
OF_GENERATE = dict.fromkeys(("early_stopping", "length_penalty", "max_length", "num_beams"), "a setting of `generate`")


@family("fsmt", NAMES, inert=OF_GENERATE | {"langs": "names for the tokenizer"}, encoder_decoder=True)
def fsmt(c: HFConfig) -> EncoderDecoder:
    c.only("tie_word_embeddings", False)
    own = Embed(Sinusoidal(c.pad_token_id + 1, endpoint=True), scale=scale(c))
    return whole(c, own, source_vocab=c.src_vocab_size, vocab=c.tgt_vocab_size, head=Head(tied=False))
