"""Doge (Shi et al. 2024, arXiv:2412.11834): attention to keys that their own values single out, scaled residuals."""

from easydel.families import llama as base
from easydel.families._parts import (
    GLU,
    Affine,
    Decoder,
    HFConfig,
    QKNorm,
    RMSNorm,
    ScaledJoins,
    UnsupportedModelError,
    ValueBiased,
    family,
)
from easydel.families._records import widened

ATTENTION = {"self_attn.bias_proj": "self_attn.dt_proj", "self_attn.bias_gain": "self_attn.A"}
JOINS = {r"joins\.mixer\.read\.weight": "input_residual", r"joins\.ffn\.read\.weight": "post_attention_residual"}
EXPERTS = ("num_experts", "num_experts_per_tok", "norm_topk_prob")


def attention(c: HFConfig) -> ValueBiased:
    norms = QKNorm(RMSNorm(c.rms_norm_eps))
    plain = base.attention(c, biased=c.attention_bias, norms=norms, window=c.sliding_window)
    return widened(ValueBiased, plain, count=c.keep_window_size)


@family("doge", base.NAMES.extended(ATTENTION | JOINS), inert=dict.fromkeys(EXPERTS, "of experts, which are refused"))
def doge(c: HFConfig) -> Decoder:
    if c.is_moe:
        problem = "is_moe is true: transformers mixes the router's numbers of several tokens, later ones among them"
        raise UnsupportedModelError(problem, file=c.file, hint="checkpoints without experts can be loaded")
    norm, ffn = RMSNorm(c.rms_norm_eps), GLU(c.intermediate_size, c.hidden_act, c.mlp_bias)
    block = ScaledJoins(attention(c), ffn, attn_in=norm, ffn_in=norm, read=Affine(shifted=False))
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm)
