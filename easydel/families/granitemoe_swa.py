"""Granite MoE with sliding windows (IBM 2026, the model card of ibm-granite/granite-swash-3b-a600m)."""

from easydel.families import granite, granite_swa, granitemoeshared as shared, llama as base
from easydel.families._parts import Decoder, Fused, HFConfig, family

NAMES = base.NAMES.extended(
    {
        "mlp": "block_sparse_moe",
        "mlp.gate": "block_sparse_moe.router",
        "mlp.shared_expert.down_proj": "shared_mlp.output_linear",
        r"experts\.(gate_up_proj|down_proj)\.weight": r"experts.\1",
    },
    fused=(shared.SHARED, Fused("experts.gate_up_proj", ("experts.gate_proj", "experts.up_proj"))),
    stacked_experts=True,
)


@family("granitemoe_swa", NAMES)
def granitemoe_swa(c: HFConfig) -> Decoder:
    return granite.multiplied(c, shared.experts(c), granite_swa.attentions(c))
