"""OLMo 2 (OLMo Team 2024, arXiv:2501.00656): norms after each half of a block, and over all queries and keys."""

from collections.abc import Sequence

from easydel.families import llama as base
from easydel.families._parts import GLU, Block, Decoder, HFConfig, Part, QKNorm, RMSNorm, family

NAMES = base.NAMES.extended(
    {
        "attn_output_layernorm": "post_attention_layernorm",
        "mlp_output_layernorm": "post_feedforward_layernorm",
    }
)


def post_norm(c: HFConfig, mixers: Sequence[Part], ffn: Part | None = None) -> Decoder:
    """Returns OLMo 2's blocks around `mixers`, one for each layer, and `ffn`: by default a GLU."""
    norm, ffn = RMSNorm(c.rms_norm_eps), ffn or GLU(c.intermediate_size, c.hidden_act)
    blocks = [Block(mixer, ffn, attn_out=norm, ffn_out=norm) for mixer in mixers]
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm)


def normed_attention(c: HFConfig) -> list[Part]:
    bias, norm = c.attention_bias, QKNorm(RMSNorm(c.rms_norm_eps), whole=True)
    return [base.attention(c, biased=bias, norms=norm)] * c.num_hidden_layers


@family("olmo2", NAMES)
def olmo2(c: HFConfig) -> Decoder:
    return post_norm(c, normed_attention(c))
