"""Granite 3 MoE (Granite Team 2024, the Granite 3.0 technical report): Granite with routed experts in each layer."""

from easydel.families import granite, llama as base
from easydel.families._parts import GLU, Decoder, Fused, HFConfig, MoE, TopK, family

GATE_UP = Fused("block_sparse_moe.input_linear", ("mlp.experts.gate_proj", "mlp.experts.up_proj"))
MODULES = {"mlp.experts.down_proj": "block_sparse_moe.output_linear", "mlp.gate": "block_sparse_moe.router.layer"}
NAMES = base.NAMES.extended(MODULES, fused=(GATE_UP,), stacked_experts=True)


@family("granitemoe", NAMES)
def granitemoe(c: HFConfig) -> Decoder:
    expert, router = GLU(c.intermediate_size, c.hidden_act), TopK(c.num_experts_per_tok, renormalize=True)
    return granite.multiplied(c, MoE(c.num_local_experts, expert, router))
