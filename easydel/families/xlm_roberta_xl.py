"""XLM-RoBERTa-XL (Goyal et al. 2021, arXiv:2105.00572): RoBERTa with norms before each part."""

from easydel.families._parts import Decoder, HFConfig, Transform, family
from easydel.families.bert import embed, encoder, names, norm
from easydel.families.roberta import HEAD

NORMS = {
    "input_layernorm": "attention.self_attn_layer_norm",
    "post_attention_layernorm": "LayerNorm",
    r"model\.norm": "roberta.encoder.LayerNorm",
}


@family("xlm-roberta-xl", names("roberta", "lm_head", HEAD | NORMS))
def xlm_roberta_xl(c: HFConfig) -> Decoder:
    own = embed(c, first=c.pad_token_id + 1, norm=None)
    return encoder(c, own, Transform("gelu", norm(c)), pre_norm=True)
