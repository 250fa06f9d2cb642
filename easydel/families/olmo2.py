"""OLMo 2 (OLMo Team 2024, arXiv:2501.00656): norms after each half of a block, and over all queries and keys."""

from __future__ import annotations

from collections.abc import Sequence

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family
from easydel.families import llama as base
from easydel.layers.attention import QKNorm
from easydel.layers.block import Block
from easydel.layers.mlp import GLU
from easydel.layers.norm import RMSNorm
from easydel.layers.part import Part

NAMES = base.NAMES.extended(
    {
        "attn_output_layernorm": "post_attention_layernorm",
        "mlp_output_layernorm": "post_feedforward_layernorm",
    }
)
DEFAULTS = base.DEFAULTS | {"vocab_size": 50304, "rms_norm_eps": 1e-5}


def post_norm(c: HFConfig, mixers: Sequence[Part], ffn: Part | None = None) -> Decoder:
    """OLMo 2's blocks around `mixers`, one for each layer, and `ffn`: by default a GLU."""
    norm, ffn = RMSNorm(c.rms_norm_eps), ffn or GLU(c.intermediate_size, c.hidden_act)
    blocks = [Block(mixer, ffn, attn_out=norm, ffn_out=norm) for mixer in mixers]
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm)


def normed_attention(c: HFConfig) -> list[Part]:
    bias, norm = c.attention_bias, QKNorm(RMSNorm(c.rms_norm_eps), whole=True)
    return [base.attention(c, bias=bias, out_bias=bias, qk_norm=norm)] * c.num_hidden_layers


@family("olmo2", NAMES, defaults=DEFAULTS)
def olmo2(c: HFConfig) -> Decoder:
    return post_norm(c, normed_attention(c))
