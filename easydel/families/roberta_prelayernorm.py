"""RoBERTa with norms before each part (Wettig et al. 2022, arXiv:2202.08005)."""

from easydel.families._parts import Decoder, HFConfig, Transform, family
from easydel.families.bert import embed, encoder, names, norm
from easydel.families.roberta import HEAD

PREFIX = "roberta_prelayernorm"
NORMS = {
    "input_layernorm": "attention.LayerNorm",
    "post_attention_layernorm": "intermediate.LayerNorm",
    r"model\.norm": f"{PREFIX}.LayerNorm",
}


@family("roberta-prelayernorm", names(PREFIX, "lm_head", HEAD | NORMS))
def roberta_prelayernorm(c: HFConfig) -> Decoder:
    return encoder(c, embed(c, first=c.pad_token_id + 1), Transform("gelu", norm(c)), pre_norm=True)
