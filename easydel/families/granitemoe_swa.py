"""Granite MoE with sliding windows (IBM 2026, the model card of ibm-granite/granite-swash-3b-a600m)."""

from easydel.families import granite, granite_swa, granitemoeshared as shared, llama as base
from easydel.families._experts import GATES, STACKED
from easydel.families._parts import Decoder, HFConfig, family

NAMES = base.NAMES.extended(
    STACKED
    | {
        "mlp": "block_sparse_moe",
        "mlp.gate": "block_sparse_moe.router",
        "mlp.shared_expert.down_proj": "shared_mlp.output_linear",
    },
    fused=(shared.SHARED, GATES),
    stacked_experts=True,
)


@family("granitemoe_swa", NAMES)
def granitemoe_swa(c: HFConfig) -> Decoder:
    return granite.multiplied(c, shared.experts(c), granite_swa.attentions(c))
