"""StarCoder and SantaCoder (Li et al. 2023, arXiv:2305.06161): GPT-2 whose heads share one key and one value."""

from easydel.families import gpt2 as base
from easydel.families._parts import QKV, Decoder, Fused, HFConfig, Names, concatenated, family, grouped

INERT = dict.fromkeys(
    ("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"), "scores are always float32 here"
)


def names(c: HFConfig) -> Names:
    layout = concatenated if c.multi_query else grouped(c.num_attention_heads)
    fused = (Fused("self_attn.c_attn", QKV, layout),)
    return Names(base.RENAMES, fused, ignored=(base.MASKS,), prefix="transformer")


@family("gpt_bigcode", names, inert=INERT)
def gpt_bigcode(c: HFConfig) -> Decoder:
    kv_heads = 1 if c.multi_query else c.num_attention_heads
    mixer = base.attention(c, kv=kv_heads, scale=None if c.scale_attn_weights else 1.0)
    return base.pre_norm(c, [mixer] * c.num_hidden_layers, c.get("n_inner"))
