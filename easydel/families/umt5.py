"""umT5 (Chung et al. 2023, arXiv:2304.09151): mT5 with a table of biases for each layer."""

from easydel.families._parts import EncoderDecoder, Head, HFConfig, family
from easydel.families.t5 import names, whole


@family("umt5", names, encoder_decoder=True)
def umt5(c: HFConfig) -> EncoderDecoder:
    scaled = c.get("tie_word_embeddings", True)  # a head of the file's own may be scaled, too: see docs/limits.md
    return whole(c, Head(tied=False, scale=c.d_model**-0.5 if scaled else 1.0), shared=None)
