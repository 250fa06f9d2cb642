"""XGLM (Lin et al. 2021, arXiv:2112.10668): BioGPT's layers with computed positions."""

from easydel.families import biogpt, gpt2
from easydel.families._parts import MLP, Block, Decoder, Embed, HFConfig, LayerNorm, Names, Sinusoidal, family

NAMES = Names(
    biogpt.RENAMES | {r"model\.norm": "model.layer_norm"},
    ignored=(r"(model\.)?embed_positions\.(weights|_float_tensor)",),
)


@family("xglm", NAMES)
def xglm(c: HFConfig) -> Decoder:
    c.only("add_cross_attention", False)
    norm, scale = LayerNorm(1e-5), c.hidden_size**0.5 if c.scale_embedding else 1.0
    block = Block(gpt2.attention(c), MLP(c.ffn_dim, c.activation_function), attn_in=norm, ffn_in=norm)
    embed = Embed(Sinusoidal(offset=2, endpoint=True), scale=scale)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm, embed=embed)
