"""XLM-RoBERTa (Conneau et al. 2019, arXiv:1911.02116): RoBERTa for a hundred languages."""

from easydel.families._parts import Decoder, HFConfig, family
from easydel.families.bert import names
from easydel.families.roberta import HEAD, behind_padding


@family("xlm-roberta", names("roberta", "lm_head", HEAD))
def xlm_roberta(c: HFConfig) -> Decoder:
    return behind_padding(c)
