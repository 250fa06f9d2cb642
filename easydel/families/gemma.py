"""Gemma (Gemma Team 2024, arXiv:2403.08295): scaled embeddings, norms stored as scale - 1, gated tanh GELU."""

from easydel.families._parts import GLU, Block, Decoder, Embed, HFConfig, RMSNorm, family
from easydel.families.llama import NAMES, attention


def norm(c: HFConfig) -> RMSNorm:
    return RMSNorm(c.rms_norm_eps, offset=1.0)


@family("gemma", NAMES)
def gemma(c: HFConfig) -> Decoder:
    act = "gelu_pytorch_tanh" if c.hidden_act == "gelu" else c.hidden_act  # the first files say gelu and mean tanh
    mixer = attention(c, biased=c.attention_bias)
    block = Block(mixer, GLU(c.intermediate_size, act), attn_in=norm(c), ffn_in=norm(c))
    embed = Embed(scale=c.hidden_size**0.5)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm(c), embed=embed)
