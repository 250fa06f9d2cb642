"""Command R (Cohere 2024, the model card of CohereLabs/c4ai-command-r-v01): parallel blocks, scaled logits."""

from __future__ import annotations

from collections.abc import Sequence

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family
from easydel.families.llama import NAMES, attention
from easydel.layers.attention import QKNorm
from easydel.layers.block import Block
from easydel.layers.embed import Head
from easydel.layers.mlp import GLU
from easydel.layers.norm import LayerNorm
from easydel.layers.part import Part
from easydel.layers.residual import Parallel

SIZES = {"vocab_size": 256000, "hidden_size": 8192, "intermediate_size": 22528, "num_hidden_layers": 40}
OTHERS = {"num_attention_heads": 64, "hidden_act": "silu", "max_position_embeddings": 8192, "layer_norm_eps": 1e-5}
DEFAULTS = SIZES | OTHERS | {"logit_scale": 0.0625, "tie_word_embeddings": True, "attention_bias": False}


def parallel(c: HFConfig, mixers: Sequence[Part]) -> Decoder:
    """Command's decoder around `mixers`: one norm before both halves of each block."""
    norm, ffn = LayerNorm(c.layer_norm_eps, biased=False), GLU(c.intermediate_size, c.hidden_act)
    blocks = [Block(mixer, ffn, attn_in=norm, residual=Parallel()) for mixer in mixers]
    head = Head(c.tie_word_embeddings, scale=c.logit_scale)
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm, head=head)


@family("cohere", NAMES, defaults=DEFAULTS | {"rope_theta": 500000.0, "use_qk_norm": False})
def cohere(c: HFConfig) -> Decoder:
    norm = QKNorm(LayerNorm(c.layer_norm_eps, biased=False), per_head=True) if c.use_qk_norm else None
    bias = c.attention_bias
    mixer = attention(c, interleaved=True, bias=bias, out_bias=bias, qk_norm=norm)
    return parallel(c, [mixer] * c.num_hidden_layers)
