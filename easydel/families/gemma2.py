"""Gemma 2 (Gemma Team 2024, arXiv:2408.00118): norms around each part, capped scores and logits, sliding layers."""

from __future__ import annotations

from collections.abc import Sequence

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family, gemma
from easydel.families.llama import NAMES as LLAMA
from easydel.families.llama import attention
from easydel.families.qwen2 import FULL, SLIDING, layer_types
from easydel.layers.block import Block
from easydel.layers.embed import Embed, Head
from easydel.layers.mlp import GLU
from easydel.layers.part import Part

NAMES = LLAMA.extended(
    {
        "post_attention_layernorm": "pre_feedforward_layernorm",
        "attn_output_layernorm": "post_attention_layernorm",
        "mlp_output_layernorm": "post_feedforward_layernorm",
    }
)
SIZES = {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8}
CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
OTHERS = {"num_key_value_heads": 4, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256}
DEFAULTS = gemma.DEFAULTS | SIZES | OTHERS | CAPS | {"sliding_window": 4096}


def alternating(c: HFConfig, period: int) -> Sequence[str]:
    """Layer types; by default every `period`-th layer sees everything."""
    return layer_types(c, [SLIDING if (i + 1) % period else FULL for i in range(c.num_hidden_layers)])


def sandwich(c: HFConfig, mixers: Sequence[Part]) -> Decoder:
    """Gemma's decoder around `mixers`, with four norms in each block."""
    norm, ffn = gemma.norm(c), GLU(c.intermediate_size, c.hidden_activation)
    blocks = [Block(mixer, ffn, attn_in=norm, attn_out=norm, ffn_in=norm, ffn_out=norm) for mixer in mixers]
    head = Head(c.tie_word_embeddings, softcap=c.final_logit_softcapping)
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm, head=head, embed=Embed(scale=c.hidden_size**0.5))


@family("gemma2", NAMES, defaults=DEFAULTS, inert=("hidden_act", "sliding_window_size"))
def gemma2(c: HFConfig) -> Decoder:
    choices = {"bias": c.attention_bias, "out_bias": c.attention_bias, "scale": c.query_pre_attn_scalar**-0.5}
    window = {SLIDING: c.sliding_window, FULL: None}
    cap = c.attn_logit_softcapping
    return sandwich(c, [attention(c, window=window[kind], softcap=cap, **choices) for kind in alternating(c, 2)])
