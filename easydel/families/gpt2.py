"""GPT-2 (Radford et al. 2019): learned positions, pre-norm blocks, plain MLPs, biases everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family
from easydel.families.llama import assembled
from easydel.layers.attention import Attention
from easydel.layers.block import Block
from easydel.layers.embed import Embed, Learned
from easydel.layers.mlp import MLP
from easydel.layers.norm import LayerNorm
from easydel.layers.part import Part
from easydel.weights.names import QKV, Fused, Names

BODY = {
    r"model\.embed_tokens": "transformer.wte",
    r"model\.embed_positions": "transformer.wpe",
    r"model\.layers": "transformer.h",
    r"model\.norm": "transformer.ln_f",
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
}
RENAMES = BODY | {"self_attn": "attn", "o_proj": "c_proj", "up_proj": "c_fc", "down_proj": "c_proj"}
MASKS = r".*\.attn\.(masked_)?bias"  # causal masks that old files hold
CONV1D = ("c_attn", "c_proj", "c_fc")
FUSED = (Fused("self_attn.c_attn", QKV),)
NAMES = Names(RENAMES, FUSED, transposed=CONV1D, ignored=(MASKS,), prefix="transformer")
ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
DEFAULTS = {"vocab_size": 50257, "n_embd": 768, "n_positions": 1024, "n_head": 12, "n_layer": 12} | {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
}


def attention(c: HFConfig, **choices: Any) -> Attention:
    """As many key heads as heads, biases on all projections; `choices` override."""
    heads = c.num_attention_heads
    own = {"kv": heads, "dim": c.hidden_size // heads, "bias": True, "out_bias": True}
    return assembled(heads, own | choices)


def pre_norm(c: HFConfig, mixers: Sequence[Part], hidden: int | None) -> Decoder:
    """GPT-2's blocks around `mixers`; `hidden` features in the feed-forward, by default 4 times the model's."""
    norm, ffn = LayerNorm(c.layer_norm_epsilon), MLP(hidden or 4 * c.hidden_size, c.activation_function)
    blocks = [Block(mixer, ffn, attn_in=norm, ffn_in=norm) for mixer in mixers]
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm, embed=Embed(Learned(c.max_position_embeddings)))


@family("gpt2", NAMES, defaults=DEFAULTS, aliases=ALIASES, inert=("n_ctx", "reorder_and_upcast_attn"))
def gpt2(c: HFConfig) -> Decoder:
    scale = (c.hidden_size // c.num_attention_heads) ** -0.5 if c.scale_attn_weights else 1.0
    scales = [scale / (i + 1) if c.scale_attn_by_inverse_layer_idx else scale for i in range(c.num_hidden_layers)]
    return pre_norm(c, [attention(c, scale=scale) for scale in scales], c.get("n_inner"))
