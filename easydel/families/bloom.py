"""BLOOM (Le Scao et al. 2022, arXiv:2211.05100): ALiBi, a norm on the embeddings, biases everywhere."""

from easydel.families import gpt2
from easydel.families._parts import (
    MLP,
    QKV,
    ALiBi,
    Block,
    Decoder,
    Embed,
    FromRead,
    Fused,
    HFConfig,
    LayerNorm,
    Names,
    Sequential,
    family,
    grouped,
)
from easydel.weights.names import Layout

LINEAR = {"o_proj": "dense", "up_proj": "dense_h_to_4h", "down_proj": "dense_4h_to_h"}
RENAMES = LINEAR | {
    r"model\.embed_tokens": "transformer.word_embeddings",
    r"model\.embed_layernorm": "transformer.word_embeddings_layernorm",
    r"model\.layers": "transformer.h",
    r"model\.norm": "transformer.ln_f",
    "self_attn": "self_attention",
}


def fused(layout: Layout) -> tuple[Fused, ...]:
    return (Fused("self_attn.query_key_value", QKV, layout),)


@family(
    "bloom",
    lambda c: Names(RENAMES, fused(grouped(c.num_attention_heads)), prefix="transformer"),
    aliases={"n_embed": "hidden_size"},
)
def bloom(c: HFConfig) -> Decoder:
    norm = LayerNorm(c.layer_norm_epsilon)
    mixer = gpt2.attention(c, position=ALiBi(c.num_attention_heads))
    residual = FromRead() if c.apply_residual_connection_post_layernorm else Sequential()
    block = Block(mixer, MLP(4 * c.hidden_size, "gelu_new"), attn_in=norm, ffn_in=norm, residual=residual)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm, embed=Embed(norm=norm))
