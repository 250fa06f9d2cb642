"""OPT and Galactica (Zhang et al. 2022, arXiv:2205.01068): GPT-2 with norms before, or (350m) after each part."""

from easydel.families import gpt2
from easydel.families._parts import MLP, Block, Decoder, Embed, Head, HFConfig, LayerNorm, Learned, Names, Post, family

NAMES = Names(
    {
        r"model\.norm": "model.decoder.final_layer_norm",
        "model": "model.decoder",
        "(input|attn_output)_layernorm": "self_attn_layer_norm",
        "(post_attention|mlp_output)_layernorm": "final_layer_norm",
        "o_proj": "out_proj",
        r"mlp\.up_proj": "fc1",
        r"mlp\.down_proj": "fc2",
    }
)


@family("opt", NAMES)
def opt(c: HFConfig) -> Decoder:
    affine, bias, width = c.layer_norm_elementwise_affine, c.enable_bias, c.get("word_embed_proj_dim", c.hidden_size)
    norm = LayerNorm(1e-5, scaled=affine, biased=affine)  # torch's default eps; there is no key for it
    mixer, ffn = gpt2.attention(c, biased=bias), MLP(c.ffn_dim, c.activation_function, bias)
    if c.do_layer_norm_before:
        block = Block(mixer, ffn, attn_in=norm, ffn_in=norm)
    else:
        block = Block(mixer, ffn, attn_out=norm, ffn_out=norm, residual=Post())
    normed = c.do_layer_norm_before and not c.get("_remove_final_layer_norm")
    return Decoder.from_hf(
        c,
        blocks=[block] * c.num_hidden_layers,
        final_norm=norm if normed else None,
        head=Head(c.tie_word_embeddings, width=width),
        embed=Embed(Learned(c.max_position_embeddings, offset=2), width=width),
    )
