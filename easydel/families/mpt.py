"""MPT (MosaicML 2023, github.com/mosaicml/llm-foundry): ALiBi, no biases, not even in norms."""

from easydel.families import gpt2
from easydel.families._parts import MLP, QKV, ALiBi, Block, Decoder, Fused, HFConfig, LayerNorm, Names, family

RENAMES = {
    r"model\.embed_tokens": "transformer.wte",
    r"model\.layers": "transformer.blocks",
    r"model\.norm": "transformer.norm_f",
    "input_layernorm": "norm_1",
    "post_attention_layernorm": "norm_2",
    "self_attn": "attn",
    "o_proj": "out_proj",
    "mlp": "ffn",
}
NAMES = Names(RENAMES, (Fused("self_attn.Wqkv", QKV),), prefix="transformer")


@family(
    "mpt",
    NAMES,
    aliases={"max_position_embeddings": "max_seq_len"},
    inert={"attn_config.attn_impl": "a choice of kernel", "learned_pos_emb": "there are none beside ALiBi"},
)
def mpt(c: HFConfig) -> Decoder:
    """Returns the decoder. transformers assumes the values below without reading the keys; any other is refused."""
    settings, norm = c.inside("attn_config"), LayerNorm(c.layer_norm_epsilon, biased=False)
    c.only("no_bias", True)
    c.only("norm_type", "low_precision_layernorm", "layernorm")
    c.only("logit_scale", None)
    c.only("embedding_fraction", 1)
    settings.only("attn_type", "multihead_attention")
    settings.only("alibi", True)
    for key in ("attn_uses_sequence_id", "prefix_lm", "qk_ln"):
        settings.only(key, False)
    mixer = gpt2.attention(
        c,
        biased="",
        position=ALiBi(c.num_attention_heads, settings.alibi_bias_max),
        scale=settings.get("softmax_scale"),
        clip=settings.get("clip_qkv") or None,
    )
    block = Block(mixer, MLP(c.expansion_ratio * c.hidden_size, "gelu", bias=False), attn_in=norm, ffn_in=norm)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm)
