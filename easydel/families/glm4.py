"""GLM-4-0414 and GLM-Z1 (Z.ai 2025, github.com/zai-org/GLM-4): GLM-4 with norms around each half of a block."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family, glm
from easydel.layers.block import Block
from easydel.layers.mlp import GLU
from easydel.layers.norm import RMSNorm

NAMES = glm.NAMES.extended(
    {"attn_output_layernorm": "post_self_attn_layernorm", "mlp_output_layernorm": "post_mlp_layernorm"}
)


@family("glm4", NAMES, defaults=glm.DEFAULTS)
def glm4(c: HFConfig) -> Decoder:
    norm, ffn = RMSNorm(c.rms_norm_eps), GLU(c.intermediate_size, c.hidden_act)
    block = Block(glm.attention(c), ffn, attn_in=norm, attn_out=norm, ffn_in=norm, ffn_out=norm)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm)
