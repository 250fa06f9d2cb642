"""Granite 3 MoE (Granite Team 2024, the Granite 3.0 technical report): Granite with routed experts in each layer."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family, granite
from easydel.families import llama as base
from easydel.layers.mlp import GLU
from easydel.layers.moe import MoE, TopK
from easydel.weights.names import Fused

GATE_UP = Fused("block_sparse_moe.input_linear", ("mlp.experts.gate_proj", "mlp.experts.up_proj"))
MODULES = {"mlp.experts.down_proj": "block_sparse_moe.output_linear", "mlp.gate": "block_sparse_moe.router.layer"}
NAMES = base.NAMES.extended(MODULES, fused=(GATE_UP,), stacked_experts=True)


@family("granitemoe", NAMES, defaults=granite.DEFAULTS | {"num_local_experts": 8, "num_experts_per_tok": 2})
def granitemoe(c: HFConfig) -> Decoder:
    expert, router = GLU(c.intermediate_size, c.hidden_act), TopK(c.num_experts_per_tok, renormalize=True)
    return granite.multiplied(c, MoE(c.num_local_experts, expert, router))
