"""Ettin's decoders (Weller et al. 2025, arXiv:2507.11412): ModernBERT, causal, with windows and two ropes."""

from typing import Any

from easydel.families._layers import SLIDING, layer_types
from easydel.families._parts import (
    GATE_UP,
    GLU,
    Block,
    Decoder,
    Embed,
    Fused,
    Head,
    HFConfig,
    LayerNorm,
    Names,
    Transform,
    family,
)
from easydel.families.llama import attention
from easydel.keys import FULL

NAMES = Names(
    {
        r"model\.embed_tokens": "model.embeddings.tok_embeddings",
        r"model\.embed_layernorm": "model.embeddings.norm",
        r"model\.norm": "model.final_norm",
        "input_layernorm": "attn_norm",
        "self_attn": "attn",
        r"self_attn\.o_proj": "attn.Wo",
        "post_attention_layernorm": "mlp_norm",
        r"mlp\.down_proj": "mlp.Wo",
        r"lm_head\.weight": "decoder.weight",
        r"lm_head\.bias": "decoder.bias",
    },
    (Fused("mlp.Wi", GATE_UP),),
    ignored=(r"decoder\.weight",),
)


def rope(c: HFConfig, kind: str) -> dict[str, Any]:
    """Rotary settings of layers of that kind; before `rope_parameters` each had a key of its own."""
    if kind in c.get("rope_parameters", {}):
        return c.rope(kind)
    key = "local_rope_theta" if kind == SLIDING else "global_rope_theta"
    return {"rope_type": "default", "rope_theta": c.get(key, c.declared.rope_rest[kind]["rope_theta"])}


@family("modernbert-decoder", NAMES, inert={"sliding_window": "half of local_attention"})
def modernbert_decoder(c: HFConfig) -> Decoder:
    norm, ffn = LayerNorm(c.norm_eps, biased=c.norm_bias), GLU(c.intermediate_size, c.hidden_activation, c.mlp_bias)
    every, bias = c.get("global_attn_every_n_layers", 3), c.attention_bias
    blocks = []
    for i, kind in enumerate(layer_types(c, [SLIDING if i % every else FULL for i in range(c.num_hidden_layers)])):
        window = c.local_attention // 2 if kind == SLIDING else None
        mixer = attention(c, rope=rope(c, kind), window=window, biased=bias)
        blocks.append(Block(mixer, ffn, attn_in=norm if i else None, ffn_in=norm))
    act, biased = c.get("classifier_activation", "gelu"), c.get("classifier_bias", False)
    head = Head(c.tie_word_embeddings, bias=c.decoder_bias, transform=Transform(act, norm, bias=biased))
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm, head=head, embed=Embed(norm=norm))
