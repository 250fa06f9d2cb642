"""data2vec for text (Baevski et al. 2022, arXiv:2202.03555): RoBERTa, trained otherwise."""

from easydel.families._parts import Decoder, HFConfig, family
from easydel.families.bert import names
from easydel.families.roberta import HEAD, behind_padding


@family("data2vec-text", names("data2vec_text", "lm_head", HEAD))
def data2vec_text(c: HFConfig) -> Decoder:
    return behind_padding(c)
