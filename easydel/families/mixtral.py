"""Mixtral (Jiang et al. 2024, arXiv:2401.04088): Mistral's attention, and two of eight experts for each token."""

from easydel.families import llama as base
from easydel.families._parts import GLU, Decoder, HFConfig, MoE, TopK, family

NAMES = base.NAMES.extended({"mlp": "block_sparse_moe", "gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"})


@family("mixtral", NAMES)
def mixtral(c: HFConfig) -> Decoder:
    router = TopK(c.num_experts_per_tok, renormalize=True)
    ffn = MoE(c.num_local_experts, GLU(c.intermediate_size, c.hidden_act), router)
    layers = c.num_hidden_layers
    return base.pre_norm(c, [base.attention(c, window=c.sliding_window)] * layers, [ffn] * layers)
