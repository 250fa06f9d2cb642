"""Qwen3.5-MoE (Qwen Team 2026, the model card of Qwen/Qwen3.5-35B-A3B): Qwen3.5 with many experts in every layer."""

from easydel.families import qwen3_5_text as dense, qwen3_next as next_
from easydel.families._parts import GLU, Decoder, HFConfig, MoE, TopK, family


@family("qwen3_5_moe_text", dense.names)
def qwen3_5_moe_text(c: HFConfig) -> Decoder:
    expert, shared = (GLU(size, c.hidden_act) for size in (c.moe_intermediate_size, c.shared_expert_intermediate_size))
    ffn = MoE(c.num_experts, expert, TopK(c.num_experts_per_tok, renormalize=True), shared, shared_gate=True)
    return next_.hybrid(c, [ffn] * c.num_hidden_layers)
