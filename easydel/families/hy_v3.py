"""Hunyuan 3 (Tencent 2026, the model card of tencent/Hy3-preview): norms of q and k, experts chosen by sigmoids."""

from easydel.families import llama as base
from easydel.families._experts import by_type
from easydel.families._parts import GLU, Decoder, HFConfig, MoE, Names, QKNorm, RMSNorm, TopK, family

RENAMES = {
    "mlp.gate": "mlp.router.gate",
    "mlp.gate.correction_bias": "mlp.expert_bias",
    "shared_expert": "shared_mlp",
}


def names(c: HFConfig) -> Names:
    """A layer past the last predicts tokens further ahead: it is left out."""
    return base.NAMES.extended(RENAMES, ignored=(rf"model\.layers\.{c.num_hidden_layers}\..*",))


@family(
    "hy_v3",
    names,
    inert={"enable_moe_fp32_combine": "a sum of two is rounded once either way"},
)
def hy_v3(c: HFConfig) -> Decoder:
    act, bias, size, norm = c.hidden_act, c.mlp_bias, c.moe_intermediate_size, QKNorm(RMSNorm(c.rms_norm_eps))
    mixer = base.attention(c, biased=c.attention_bias, norms=norm)
    router = TopK(c.num_experts_per_tok, True, c.router_scaling_factor, "sigmoid", corrected=True)
    sparse = MoE(c.num_experts, GLU(size, act), router, GLU(size * c.num_shared_experts, act, bias))
    ffns = by_type(c, sparse, GLU(c.intermediate_size, act, bias), 1)
    return base.pre_norm(c, [mixer] * c.num_hidden_layers, ffns)
