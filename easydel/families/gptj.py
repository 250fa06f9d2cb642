"""GPT-J (Wang & Komatsuzaki 2021, github.com/kingoflolz/mesh-transformer-jax): attention beside the feed-forward."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family, gpt2
from easydel.layers.block import Block
from easydel.layers.embed import Head
from easydel.layers.mlp import MLP
from easydel.layers.norm import LayerNorm
from easydel.layers.residual import Parallel
from easydel.layers.rope import Rope
from easydel.weights.names import Names

NAMES = Names(
    gpt2.BODY | {"self_attn": "attn", "o_proj": "out_proj", "up_proj": "fc_in", "down_proj": "fc_out"},
    ignored=(gpt2.MASKS,),
    prefix="transformer",
)
DEFAULTS = {"vocab_size": 50400, "n_embd": 4096, "n_positions": 2048, "n_head": 16, "n_layer": 28} | {
    "rotary_dim": 64,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": False,
}


@family("gptj", NAMES, defaults=DEFAULTS, aliases=gpt2.ALIASES, inert=("n_ctx", "rotary", "scale_attn_weights"))
def gptj(c: HFConfig) -> Decoder:
    norm = LayerNorm(c.layer_norm_epsilon)
    rope = Rope(c.get("rotary_dim") or c.hidden_size // c.num_attention_heads, interleaved=True)
    mixer = gpt2.attention(c, bias=False, out_bias=False, position=rope)
    ffn = MLP(c.get("n_inner") or 4 * c.hidden_size, c.activation_function)
    block = Block(mixer, ffn, attn_in=norm, residual=Parallel())
    head = Head(c.tie_word_embeddings, bias=True)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm, head=head)
