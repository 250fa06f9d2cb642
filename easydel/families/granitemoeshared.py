"""Granite 3 MoE with shared experts (IBM 2025, the card of ibm-research/moe-7b-1b-active-shared-experts)."""

from easydel.families import granite, granitemoe
from easydel.families._parts import GLU, Decoder, Fused, HFConfig, MoE, TopK, family

SHARED = Fused("shared_mlp.input_linear", ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"))
NAMES = granitemoe.NAMES.extended({"mlp.shared_expert.down_proj": "shared_mlp.output_linear"}, fused=(SHARED,))


def experts(c: HFConfig) -> MoE:
    """Returns Granite's routed experts, and one for all tokens if its size is not 0."""
    expert, router = GLU(c.intermediate_size, c.hidden_act), TopK(c.num_experts_per_tok, renormalize=True)
    shared = GLU(c.shared_intermediate_size, c.hidden_act) if c.shared_intermediate_size else None
    return MoE(c.num_local_experts, expert, router, shared)


@family("granitemoeshared", NAMES)
def granitemoeshared(c: HFConfig) -> Decoder:
    return granite.multiplied(c, experts(c))
