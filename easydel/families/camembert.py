"""CamemBERT (Martin et al. 2019, arXiv:1911.03894): RoBERTa for French."""

from easydel.families._parts import Decoder, HFConfig, family
from easydel.families.bert import names
from easydel.families.roberta import HEAD, behind_padding


@family("camembert", names("roberta", "lm_head", HEAD))
def camembert(c: HFConfig) -> Decoder:
    return behind_padding(c)
