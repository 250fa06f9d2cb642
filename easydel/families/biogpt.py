"""BioGPT (Luo et al. 2022, arXiv:2210.10341): BART's decoder with norms before its parts."""

from easydel.families import gpt2
from easydel.families._parts import MLP, Block, Decoder, Embed, HFConfig, LayerNorm, Learned, Names, family

RENAMES = {
    "o_proj": "out_proj",
    "input_layernorm": "self_attn_layer_norm",
    "post_attention_layernorm": "final_layer_norm",
    r"mlp\.up_proj": "fc1",
    r"mlp\.down_proj": "fc2",
}
NAMES = Names(
    RENAMES | {r"model\.norm": "biogpt.layer_norm", "lm_head": "output_projection"},
    prefix="biogpt",
)


@family("biogpt", NAMES, inert={"layer_norm_eps": "norms have torch's default, 1e-5"})
def biogpt(c: HFConfig) -> Decoder:
    norm, scale = LayerNorm(1e-5), c.hidden_size**0.5 if c.scale_embedding else 1.0
    block = Block(gpt2.attention(c), MLP(c.intermediate_size, c.hidden_act), attn_in=norm, ffn_in=norm)
    embed = Embed(Learned(c.max_position_embeddings, offset=2), scale=scale)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm, embed=embed)
