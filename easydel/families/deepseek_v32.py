"""DeepSeek-V3.2 (DeepSeek-AI 2025, arXiv:2512.02556): V3 whose attention sees the keys that an indexer chooses."""

from dataclasses import replace

from easydel.families import deepseek_v2 as v2, deepseek_v3 as v3, llama as base
from easydel.families._experts import FUSED_BY_PEFT, by_type, corrected_router, experts
from easydel.families._layers import layer_types
from easydel.families._parts import GLU, MLA, Decoder, HFConfig, Indexer, LayerNorm, Part, family

INDEXED = "indexed_attention"
INERT = {"mlp_bias": "transformers has no bias there", "head_dim": "it is that of the rotated channels"}


def attention(c: HFConfig, *, interleaved: bool = False) -> MLA:
    """Latent attention with an indexer, which rotates halves, or `interleaved` pairs as the attention does."""
    layer_types(c, [INDEXED] * c.num_hidden_layers, (INDEXED,))
    mixer = v2.latent_attention(c)
    assert mixer.position is not None
    position = replace(mixer.position, interleaved=interleaved)
    sizes = (c.index_n_heads, c.index_head_dim, c.index_topk, c.q_lora_rank)
    return replace(mixer, select=Indexer(*sizes, position, LayerNorm(1e-6)))


def ffns(c: HFConfig) -> list[Part]:
    """Each layer's feed-forward: `mlp_layer_types`, or dense ones in the first layers."""
    sparse, dense = experts(c, corrected_router(c)), GLU(c.intermediate_size, c.hidden_act)
    return by_type(c, sparse, dense, c.first_k_dense_replace)


@family("deepseek_v32", v3.names, inert=INERT, peft_lacks=FUSED_BY_PEFT)
def deepseek_v32(c: HFConfig) -> Decoder:
    return base.pre_norm(c, [attention(c)] * c.num_hidden_layers, ffns(c))
