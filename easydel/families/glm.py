"""GLM-4 and GLM-Edge (GLM Team 2024, arXiv:2406.12793): Llama with biases on q, k and v, half of each head rotated."""

from easydel.families import llama as base
from easydel.families._parts import GATE_UP, Attention, Decoder, Fused, HFConfig, family

NAMES = base.NAMES.extended(fused=(Fused("mlp.gate_up_proj", GATE_UP),))


def attention(c: HFConfig) -> Attention:
    return base.attention(c, interleaved=True, biased="qkv" if c.attention_bias else "")


@family("glm", NAMES)
def glm(c: HFConfig) -> Decoder:
    return base.pre_norm(c, [attention(c)] * c.num_hidden_layers)
