"""GPT-2 (Radford et al. 2019): learned positions, pre-norm blocks, plain MLPs, biases everywhere."""

from collections.abc import Sequence
from typing import Any

from easydel.families._parts import (
    MLP,
    QKV,
    Attention,
    Block,
    Decoder,
    Embed,
    Fused,
    HFConfig,
    LayerNorm,
    Learned,
    Names,
    Part,
    family,
)
from easydel.families.llama import assembled

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
INERT = {"reorder_and_upcast_attn": "scores are always float32 here"}


def attention(c: HFConfig, **choices: Any) -> Attention:
    """Returns attention with as many key heads as heads and biases on all projections; `choices` override."""
    heads = c.num_attention_heads
    own = {"kv": heads, "dim": c.hidden_size // heads, "biased": "qkvo"}
    return assembled(heads, own | choices)


def pre_norm(c: HFConfig, mixers: Sequence[Part], hidden: int | None) -> Decoder:
    """Returns GPT-2's blocks around `mixers`; `hidden` features in the feed-forward, by default 4 times the model's."""
    norm, ffn = LayerNorm(c.layer_norm_epsilon), MLP(hidden or 4 * c.hidden_size, c.activation_function)
    blocks = [Block(mixer, ffn, attn_in=norm, ffn_in=norm) for mixer in mixers]
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm, embed=Embed(Learned(c.max_position_embeddings)))


@family("gpt2", NAMES, inert=INERT)
def gpt2(c: HFConfig) -> Decoder:
    scale = (c.hidden_size // c.num_attention_heads) ** -0.5 if c.scale_attn_weights else 1.0
    scales = [scale / (i + 1) if c.scale_attn_by_inverse_layer_idx else scale for i in range(c.num_hidden_layers)]
    return pre_norm(c, [attention(c, scale=scale) for scale in scales], c.get("n_inner"))
