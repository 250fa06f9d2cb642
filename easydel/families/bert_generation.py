"""BERT for generation (Rothe et al. 2019, arXiv:1907.12461): without token types and without a transform."""

from easydel.families._parts import Decoder, HFConfig, family
from easydel.families.bert import embed, encoder, names


@family("bert-generation", names("bert", "lm_head", {}))
def bert_generation(c: HFConfig) -> Decoder:
    return encoder(c, embed(c, types=0), None)
