"""Megatron-BERT (Shoeybi et al. 2019, arXiv:1909.08053): BERT with norms before each part."""

from easydel.families._parts import Decoder, HFConfig, Transform, family
from easydel.families.bert import TRANSFORMED, embed, encoder, names, norm

NORMS = {
    "input_layernorm": "attention.ln",
    "post_attention_layernorm": "ln",
    r"model\.norm": "bert.encoder.ln",
}


@family("megatron-bert", names("bert", "cls.predictions", TRANSFORMED | NORMS))
def megatron_bert(c: HFConfig) -> Decoder:
    return encoder(c, embed(c, norm=None), Transform(c.hidden_act, norm(c)), pre_norm=True)
