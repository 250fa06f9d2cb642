"""XLM (Lample & Conneau 2019, arXiv:1901.07291): BERT for several languages, seen both ways unless `causal`."""

from easydel.families._parts import (
    MLP,
    Around,
    Attention,
    Block,
    Causal,
    Decoder,
    Embed,
    Head,
    Heads,
    HFConfig,
    LayerNorm,
    Learned,
    Names,
    Post,
    family,
)

LISTS = {
    r"self_attn\.([qkv])_proj": r"attentions.*.\1_lin",
    r"self_attn\.o_proj": "attentions.*.out_lin",
    "attn_output_layernorm": "layer_norm1.*",
    r"mlp\.up_proj": "ffns.*.lin1",
    r"mlp\.down_proj": "ffns.*.lin2",
    "mlp_output_layernorm": "layer_norm2.*",
}
NAMES = Names(
    {
        r"model\.embed_tokens": "transformer.embeddings",
        r"model\.embed_positions": "transformer.position_embeddings",
        r"model\.embed_layernorm": "transformer.layer_norm_emb",
        "lm_head": "pred_layer.proj",
        **{rf"model\.layers\.\*\.{ours}": f"transformer.{theirs}" for ours, theirs in LISTS.items()},
    },
    ignored=(r"pred_layer\.proj\.weight", r"(transformer\.)?(lang_embeddings\.weight|position_ids)"),
    prefix="transformer",
)
INERT = dict.fromkeys(("n_langs", "use_lang_emb", "lang_id"), "as in transformers without `langs`")
INERT |= dict.fromkeys(("start_n_top", "end_n_top"), "of heads that answer questions")
INERT |= dict.fromkeys(("mask_index", "unk_index"), "for the tokenizer")
INERT |= {"sinusoidal_embeddings": "how the table of positions begins"}


@family("xlm", NAMES, inert=INERT)
def xlm(c: HFConfig) -> Decoder:
    c.only("asm", False)
    heads, norm = c.n_heads, LayerNorm(c.layer_norm_eps)
    sight = Causal() if c.causal else Around()
    mixer = Attention(Heads(heads, heads, c.emb_dim // heads, biased="qkvo"), sight=sight)
    ffn = MLP(4 * c.emb_dim, "gelu" if c.gelu_activation else "relu")
    layer = Block(mixer, ffn, attn_out=norm, ffn_out=norm, residual=Post())
    return Decoder.from_hf(
        c,
        blocks=[layer] * c.n_layers,
        final_norm=None,
        head=Head(c.tie_word_embeddings, bias=True),
        embed=Embed(Learned(c.max_position_embeddings), norm),
    )
