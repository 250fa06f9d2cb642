"""Aria's language model (Rhymes AI 2024, arXiv:2410.05993): Llama's attention, routed and shared experts."""

from easydel.families import llama as base
from easydel.families._parts import GLU, Decoder, Fused, HFConfig, MoE, TopK, family

NAMES = base.NAMES.extended(
    {"mlp.gate": "mlp.router", "experts.down_proj": "experts.fc2", "shared_expert": "shared_experts"},
    fused=(Fused("mlp.experts.fc1", ("mlp.experts.gate_proj", "mlp.experts.up_proj")),),
    transposed=("experts.fc1", "experts.fc2"),
    stacked_experts=True,
)


@family("aria_text", NAMES)
def aria_text(c: HFConfig) -> Decoder:
    layers, size, bias = c.num_hidden_layers, c.intermediate_size, c.attention_bias
    shared = GLU(size * c.moe_num_shared_experts, c.hidden_act, c.mlp_bias)
    ffn = MoE(c.moe_num_experts, GLU(size, "silu"), TopK(c.moe_topk, renormalize=True), shared)
    return base.pre_norm(c, [base.attention(c, biased=bias)] * layers, [ffn] * layers)
