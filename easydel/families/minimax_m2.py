"""MiniMax-M2 (MiniMax 2025, the model card of MiniMaxAI/MiniMax-M2): norms over all queries and keys, many experts."""

from easydel.families import llama as base, mixtral
from easydel.families._parts import GLU, Decoder, HFConfig, MoE, QKNorm, RMSNorm, TopK, family

NAMES = mixtral.NAMES.extended({"mlp.gate.correction_bias": "block_sparse_moe.e_score_correction_bias"})


@family("minimax_m2", NAMES)
def minimax_m2(c: HFConfig) -> Decoder:
    c.only("scoring_func", "sigmoid")
    c.only("use_qk_norm", True)
    settings, rotated = c.rope(), c.get("rotary_dim")
    if rotated is not None:
        settings.setdefault("partial_rotary_factor", rotated / c.head_dim)
    norm, layers = QKNorm(RMSNorm(c.rms_norm_eps), whole=True), c.num_hidden_layers
    mixer = base.attention(c, norms=norm, rope=settings)
    router = TopK(c.num_experts_per_tok, renormalize=True, score="sigmoid", corrected=True)
    ffn = MoE(c.num_local_experts, GLU(c.intermediate_size, c.hidden_act), router)
    return base.pre_norm(c, [mixer] * layers, [ffn] * layers)
