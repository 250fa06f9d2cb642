"""StarCoder2 (Lozhkov et al. 2024, arXiv:2402.19173): Mistral's attention, LayerNorms and a plain MLP, all biased."""

from easydel.families._parts import MLP, Block, Decoder, HFConfig, LayerNorm, family
from easydel.families.llama import NAMES as LLAMA, attention

NAMES = LLAMA.extended({"up_proj": "c_fc", "down_proj": "c_proj"})


@family("starcoder2", NAMES)
def starcoder2(c: HFConfig) -> Decoder:
    norm, bias = LayerNorm(c.norm_epsilon), c.use_bias
    mixer = attention(c, biased=bias, window=c.sliding_window)
    block = Block(mixer, MLP(c.intermediate_size, c.hidden_act, bias), attn_in=norm, ffn_in=norm)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm)
