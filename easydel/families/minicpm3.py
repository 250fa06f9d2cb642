"""MiniCPM3 (OpenBMB 2024, arXiv:2404.06395; the model card of openbmb/MiniCPM3-4B): latent attention, scaled parts."""

from dataclasses import replace

from easydel.families import deepseek_v2 as v2, llama as base
from easydel.families._parts import Decoder, Embed, Head, HFConfig, Sequential, family


@family("minicpm3", base.NAMES, inert={"head_dim": "it follows from the others"})
def minicpm3(c: HFConfig) -> Decoder:
    features, layers = c.hidden_size, c.num_hidden_layers
    mixer = v2.latent_attention(c, interleaved=False, value_dim=features // c.num_attention_heads)
    plain, depth = base.pre_norm(c, [mixer] * layers, bias=c.mlp_bias), c.get("scale_depth")
    residual = Sequential() if depth is None else Sequential(depth / layers**0.5)
    return replace(
        plain,
        blocks=tuple(replace(block, residual=residual) for block in plain.blocks),
        embed=Embed(scale=c.scale_emb),
        head=Head(c.tie_word_embeddings, scale=(c.get("dim_model_base") or features) / features),
    )
