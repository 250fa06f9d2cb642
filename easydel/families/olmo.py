"""OLMo (Groeneveld et al. 2024, arXiv:2402.00838): Llama with norms that have no parameters."""

from easydel.families import llama as base
from easydel.families._parts import GLU, Block, Decoder, HFConfig, LayerNorm, family


@family("olmo", base.NAMES)
def olmo(c: HFConfig) -> Decoder:
    norm = LayerNorm(1e-5, scaled=False, biased=False)
    mixer = base.attention(c, biased=c.attention_bias, clip=c.clip_qkv)
    block = Block(mixer, GLU(c.intermediate_size, c.hidden_act), attn_in=norm, ffn_in=norm)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm)
