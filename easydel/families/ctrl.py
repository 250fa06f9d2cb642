"""CTRL (Keskar et al. 2019, arXiv:1909.05858): GPT-2's order of parts, computed positions, a bias of the tied head."""

from easydel.families import gpt2
from easydel.families._parts import MLP, Block, Decoder, Embed, Head, HFConfig, LayerNorm, Names, Sinusoidal, family

NAMES = Names(
    {
        r"model\.embed_tokens": "transformer.w",
        r"model\.layers": "transformer.h",
        r"model\.norm": "transformer.layernorm",
        "input_layernorm": "layernorm1",
        "post_attention_layernorm": "layernorm2",
        "self_attn": "multi_head_attention",
        "q_proj": "Wq",
        "k_proj": "Wk",
        "v_proj": "Wv",
        "o_proj": "dense",
        r"mlp\.up_proj": "ffn.0",
        r"mlp\.down_proj": "ffn.2",
    },
    prefix="transformer",
)


@family("ctrl", NAMES)
def ctrl(c: HFConfig) -> Decoder:
    norm, embed = LayerNorm(1e-6), Embed(Sinusoidal(), scale=c.hidden_size**0.5)
    block = Block(gpt2.attention(c), MLP(c.dff, "relu"), attn_in=norm, ffn_in=norm)
    blocks, head = [block] * c.num_hidden_layers, Head(c.tie_word_embeddings, bias=True)
    return Decoder.from_hf(c, blocks=blocks, final_norm=LayerNorm(c.layer_norm_epsilon), head=head, embed=embed)
