"""RoBERTa (Liu et al. 2019, arXiv:1907.11692): BERT whose first position is the row behind that of padding."""

from easydel.families._parts import Decoder, HFConfig, Transform, family
from easydel.families.bert import embed, encoder, names, norm

HEAD = {r"lm_head\.norm": "lm_head.layer_norm"}


def behind_padding(c: HFConfig) -> Decoder:
    """BERT with RoBERTa's positions and head."""
    return encoder(c, embed(c, first=c.pad_token_id + 1), Transform("gelu", norm(c)))


@family("roberta", names("roberta", "lm_head", HEAD))
def roberta(c: HFConfig) -> Decoder:
    return behind_padding(c)
