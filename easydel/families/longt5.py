"""LongT5 (Guo et al. 2021, arXiv:2112.07916): T5 with an encoder that sees nearby tokens, and perhaps summaries."""

from easydel.families._parts import EncoderDecoder, HFConfig, Local, Names, RMSNorm, Summaries, family
from easydel.families.t5 import BIAS, bias, head, heads, names as t5_names, whole

GLOBAL_BIAS = f"global_{BIAS}"
SELF = {"local": "LocalSelfAttention", "transient-global": "TransientGlobalSelfAttention"}


def names(c: HFConfig) -> Names:
    own, layers = f"layer.0.{SELF[c.encoder_attention_type]}", r"model\.encoder\.layers\.\*\.self_attn"
    return t5_names(c).extended(
        {
            rf"{layers}\.([qkvo])_proj": rf"encoder.block.*.{own}.\1",
            rf"{layers}\.summary_norm": f"encoder.block.*.{own}.global_input_layer_norm",
            rf"model\.encoder\.{BIAS}": f"encoder.block.0.{own}.{BIAS}",
            rf"model\.encoder\.{GLOBAL_BIAS}": f"encoder.block.0.{own}.{GLOBAL_BIAS}",
        }
    )


@family("longt5", names, encoder_decoder=True)
def longt5(c: HFConfig) -> EncoderDecoder:
    position, size = bias(c, bidirectional=True, shared=GLOBAL_BIAS), c.global_block_size
    sums = Summaries(size, RMSNorm(c.layer_norm_epsilon), position)
    summaries = sums if c.only("encoder_attention_type", *SELF) == "transient-global" else None
    return whole(c, head(c), around=Local(heads(c), c.local_radius, bias(c, bidirectional=True), 1.0, summaries))
