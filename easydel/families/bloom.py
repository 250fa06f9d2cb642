"""BLOOM (Le Scao et al. 2022, arXiv:2211.05100): ALiBi, a norm on the embeddings, biases everywhere."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family, gpt2
from easydel.layers.block import Block
from easydel.layers.embed import Embed
from easydel.layers.mlp import MLP
from easydel.layers.norm import LayerNorm
from easydel.layers.position import ALiBi
from easydel.layers.residual import FromRead, Sequential
from easydel.weights.names import QKV, Fused, Layout, Names, grouped

LINEAR = {"o_proj": "dense", "up_proj": "dense_h_to_4h", "down_proj": "dense_4h_to_h"}
RENAMES = LINEAR | {
    r"model\.embed_tokens": "transformer.word_embeddings",
    r"model\.embed_layernorm": "transformer.word_embeddings_layernorm",
    r"model\.layers": "transformer.h",
    r"model\.norm": "transformer.ln_f",
    "self_attn": "self_attention",
}
ALIASES = {"hidden_size": "n_embed", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}
DEFAULTS = {"vocab_size": 250880, "hidden_size": 64, "n_head": 8, "n_layer": 2} | {
    "layer_norm_epsilon": 1e-5,
    "apply_residual_connection_post_layernorm": False,
    "tie_word_embeddings": True,
}
# ALiBi has no longest sequence, scores are always float32 here, the rest is from its training.
INERT = ("seq_length", "attention_softmax_in_fp32", "masked_softmax_fusion", "bias_dropout_fusion", "offset_alibi")


def fused(layout: Layout) -> tuple[Fused, ...]:
    return (Fused("self_attn.query_key_value", QKV, layout),)


@family(
    "bloom",
    lambda c: Names(RENAMES, fused(grouped(c.num_attention_heads)), prefix="transformer"),
    defaults=DEFAULTS,
    aliases=ALIASES,
    inert=INERT,
)
def bloom(c: HFConfig) -> Decoder:
    norm = LayerNorm(c.layer_norm_epsilon)
    mixer = gpt2.attention(c, position=ALiBi(c.num_attention_heads))
    residual = FromRead() if c.apply_residual_connection_post_layernorm else Sequential()
    block = Block(mixer, MLP(4 * c.hidden_size, "gelu_new"), attn_in=norm, ffn_in=norm, residual=residual)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm, embed=Embed(norm=norm))
