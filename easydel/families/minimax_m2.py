"""MiniMax-M2 (MiniMax 2025, the model card of MiniMaxAI/MiniMax-M2): norms over all queries and keys, many experts."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import deepseek_v2 as v2
from easydel.families import family, mixtral
from easydel.families import llama as base
from easydel.layers.attention import QKNorm
from easydel.layers.mlp import GLU
from easydel.layers.moe import MoE, TopK
from easydel.layers.norm import RMSNorm

NAMES = mixtral.NAMES.extended({"mlp.gate.correction_bias": "block_sparse_moe.e_score_correction_bias"})
SIZES = {"vocab_size": 200064, "hidden_size": 3072, "intermediate_size": 1536, "num_hidden_layers": 62}
HEADS = {"num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 196608}
EXPERTS = {"num_local_experts": 256, "num_experts_per_tok": 8, "rope_theta": 5e6}
DEFAULTS = base.DEFAULTS | SIZES | HEADS | EXPERTS
# of MiniMax-01's hybrid layers and of what M2's files leave out (shared experts, prediction further ahead)
EARLIER = ("attn_type_list", "mlp_intermediate_size", "shared_moe_mode", "qk_norm_type", "use_routing_bias")
AHEAD = ("use_mtp", "num_mtp_modules", "mtp_transformer_layers")


@family("minimax_m2", NAMES, defaults=DEFAULTS, aliases={"num_local_experts": "num_experts"}, inert=EARLIER + AHEAD)
def minimax_m2(c: HFConfig) -> Decoder:
    v2.require(c, "scoring_func", c.get("scoring_func", "sigmoid"), "sigmoid")
    v2.require(c, "use_qk_norm", c.get("use_qk_norm", True), True)
    settings, rotated = c.rope(), c.get("rotary_dim")
    if rotated is not None:
        settings.setdefault("partial_rotary_factor", rotated / c.head_dim)
    norm, layers = QKNorm(RMSNorm(c.rms_norm_eps), whole=True), c.num_hidden_layers
    mixer = base.attention(c, qk_norm=norm, rope=settings)
    router = TopK(c.num_experts_per_tok, renormalize=True, score="sigmoid", corrected=True)
    ffn = MoE(c.num_local_experts, GLU(c.intermediate_size, c.hidden_act), router)
    return base.pre_norm(c, [mixer] * layers, [ffn] * layers)
