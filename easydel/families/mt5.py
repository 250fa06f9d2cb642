"""mT5 (Xue et al. 2020, arXiv:2010.11934): T5 v1.1 for a hundred languages, with a head that is never scaled."""

from easydel.families._parts import EncoderDecoder, Head, HFConfig, family
from easydel.families.t5 import names, whole


@family(
    "mt5", names, inert={"tie_word_embeddings": "the file's head counts; one without is tied"}, encoder_decoder=True
)
def mt5(c: HFConfig) -> EncoderDecoder:
    return whole(c, Head(tied=False))
