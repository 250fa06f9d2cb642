"""GPT-J (Wang & Komatsuzaki 2021, github.com/kingoflolz/mesh-transformer-jax): attention beside the feed-forward."""

from easydel.families import gpt2
from easydel.families._parts import MLP, Block, Decoder, Head, HFConfig, LayerNorm, Names, Parallel, Rope, family

NAMES = Names(
    gpt2.BODY | {"self_attn": "attn", "o_proj": "out_proj", "up_proj": "fc_in", "down_proj": "fc_out"},
    ignored=(gpt2.MASKS,),
    prefix="transformer",
)


@family("gptj", NAMES)
def gptj(c: HFConfig) -> Decoder:
    norm = LayerNorm(c.layer_norm_epsilon)
    rope = Rope(c.get("rotary_dim") or c.hidden_size // c.num_attention_heads, interleaved=True)
    mixer = gpt2.attention(c, biased="", position=rope)
    ffn = MLP(c.get("n_inner") or 4 * c.hidden_size, c.activation_function)
    block = Block(mixer, ffn, attn_in=norm, residual=Parallel())
    head = Head(c.tie_word_embeddings, bias=True)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm, head=head)
