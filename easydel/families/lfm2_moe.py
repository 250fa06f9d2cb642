"""LFM2-MoE (Liquid AI 2025, arXiv:2511.23404): LFM2 with experts, chosen by sigmoids, in all but the first layers."""

from easydel.families import lfm2 as dense
from easydel.families._parts import GLU, Decoder, HFConfig, MoE, TopK, family

NAMES = dense.NAMES.extended({r"mlp\.gate\.correction_bias": "feed_forward.expert_bias"})


@family("lfm2_moe", NAMES, aliases={"tie_embedding": "tie_word_embeddings"})
def lfm2_moe(c: HFConfig) -> Decoder:
    layers, first = c.num_hidden_layers, c.num_dense_layers
    how = {"score": "sigmoid", "corrected": c.use_expert_bias, "floor": 1e-6}
    router = TopK(c.num_experts_per_tok, c.norm_topk_prob, c.routed_scaling_factor, **how)
    sparse = MoE(c.num_experts, GLU(c.moe_intermediate_size, "silu"), router)
    ffns = [GLU(c.intermediate_size, "silu") if i < first else sparse for i in range(layers)]
    return dense.hybrid(c, c.get("layer_types"), ffns)
