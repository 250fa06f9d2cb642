"""GLM-4-0414 and GLM-Z1 (Z.ai 2025, github.com/zai-org/GLM-4): GLM-4 with norms around each half of a block."""

from easydel.families import glm
from easydel.families._parts import GLU, Block, Decoder, HFConfig, RMSNorm, family

NAMES = glm.NAMES.extended(
    {"attn_output_layernorm": "post_self_attn_layernorm", "mlp_output_layernorm": "post_mlp_layernorm"}
)


@family("glm4", NAMES)
def glm4(c: HFConfig) -> Decoder:
    norm, ffn = RMSNorm(c.rms_norm_eps), GLU(c.intermediate_size, c.hidden_act)
    block = Block(glm.attention(c), ffn, attn_in=norm, attn_out=norm, ffn_in=norm, ffn_out=norm)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm)
