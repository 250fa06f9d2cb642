"""OLMo 2 (OLMo Team 2024, arXiv:2501.00656): norms after each half of a block, and over all queries and keys."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family
from easydel.families import llama as base
from easydel.layers.attention import QKNorm
from easydel.layers.block import Block
from easydel.layers.mlp import GLU
from easydel.layers.norm import RMSNorm

NAMES = base.NAMES.extended(
    {
        "attn_output_layernorm": "post_attention_layernorm",
        "mlp_output_layernorm": "post_feedforward_layernorm",
    }
)
DEFAULTS = base.DEFAULTS | {"vocab_size": 50304, "rms_norm_eps": 1e-5}


@family("olmo2", NAMES, defaults=DEFAULTS)
def olmo2(c: HFConfig) -> Decoder:
    norm, bias = RMSNorm(c.rms_norm_eps), c.attention_bias
    mixer = base.attention(c, bias=bias, out_bias=bias, qk_norm=QKNorm(norm, whole=True))
    block = Block(mixer, GLU(c.intermediate_size, c.hidden_act), attn_out=norm, ffn_out=norm)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm)
