"""OPT and Galactica (Zhang et al. 2022, arXiv:2205.01068): GPT-2 with norms before, or (350m) after each part."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family, gpt2
from easydel.layers.block import Block
from easydel.layers.embed import Embed, Head, Learned
from easydel.layers.mlp import MLP
from easydel.layers.norm import LayerNorm
from easydel.layers.residual import Post
from easydel.weights.names import Names

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
SIZES = {"vocab_size": 50272, "hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
DEFAULTS = SIZES | {
    "activation_function": "relu",
    "max_position_embeddings": 2048,
    "do_layer_norm_before": True,
    "_remove_final_layer_norm": False,
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": True,
}


@family("opt", NAMES, defaults=DEFAULTS, inert=("learned_embeddings",))
def opt(c: HFConfig) -> Decoder:
    affine, bias, width = c.layer_norm_elementwise_affine, c.enable_bias, c.get("word_embed_proj_dim", c.hidden_size)
    norm = LayerNorm(1e-5, scaled=affine, biased=affine)  # torch's default eps; there is no key for it
    mixer, ffn = gpt2.attention(c, bias=bias, out_bias=bias), MLP(c.ffn_dim, c.activation_function, bias)
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
