"""Hunyuan-A13B (Tencent 2025, the Hunyuan-A13B technical report): the dense Hunyuan with routed and shared experts."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import deepseek_v2 as v2
from easydel.families import family
from easydel.families import hunyuan_v1_dense as dense
from easydel.families import llama as base
from easydel.layers.attention import QKNorm
from easydel.layers.mlp import GLU
from easydel.layers.moe import MoE, TopK
from easydel.layers.norm import RMSNorm

NAMES = dense.NAMES.extended({"mlp.gate": "mlp.gate.wg", "shared_expert": "shared_mlp"})
# other names of sizes, and settings of what `SWITCHES` has off
SIZES = ("moe_intermediate_size", "num_shared_expert", "use_mixed_mlp_moe")
LATENT = ("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
SWITCHES = {"norm_topk_prob": True, "use_mla": False, "use_cla": False}


@family(
    "hunyuan_v1_moe",
    NAMES,
    defaults=dense.DEFAULTS | {"num_experts": 1},
    aliases={"moe_topk": "num_experts_per_tok"},
    inert=(*dense.INERT, *SIZES, *LATENT),
)
def hunyuan_v1_moe(c: HFConfig) -> Decoder:
    for key, known in SWITCHES.items():
        v2.require(c, key, c.get(key, known), known)
    bias, layers, chosen = c.attention_bias, c.num_hidden_layers, c.get("moe_topk", 1)
    norm = QKNorm(RMSNorm(c.rms_norm_eps), rotated=True)
    mixer = base.attention(c, rope=dense.rope(c), bias=bias, out_bias=bias, qk_norm=norm)
    expert = GLU(c.intermediate_size, c.hidden_act)
    each = chosen if isinstance(chosen, list) else [chosen] * layers
    ffns = [MoE(c.num_experts, expert, TopK(k, renormalize=True), expert) for k in each]
    return base.pre_norm(c, [mixer] * layers, ffns)
