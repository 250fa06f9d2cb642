"""GPT (Radford et al. 2018, Improving Language Understanding by Generative Pre-Training): norms after each sum."""

from easydel.families import gpt2
from easydel.families._parts import (
    MLP,
    Block,
    Decoder,
    Embed,
    HFConfig,
    LayerNorm,
    Learned,
    Post,
    UnsupportedModelError,
    family,
)

NAMES = gpt2.NAMES.extended(
    {
        r"model\.embed_tokens": "transformer.tokens_embed",
        r"model\.embed_positions": "transformer.positions_embed",
        "attn_output_layernorm": "ln_1",
        "mlp_output_layernorm": "ln_2",
    },
    ignored=(r"(transformer\.)?position_ids",),
)
ACTS = {"gelu": "gelu_new", "relu": "relu", "silu": "silu", "swish": "silu"}


@family("openai-gpt", NAMES)
def openai_gpt(c: HFConfig) -> Decoder:
    norm, act = LayerNorm(c.layer_norm_epsilon), ACTS.get(c.afn)
    if act is None:
        raise UnsupportedModelError(f"afn is {c.afn!r}, known: {', '.join(ACTS)}", file=c.file)
    ffn = MLP(4 * c.hidden_size, act)
    block = Block(gpt2.attention(c), ffn, attn_out=norm, ffn_out=norm, residual=Post())
    embed = Embed(Learned(c.max_position_embeddings))
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=None, embed=embed)
