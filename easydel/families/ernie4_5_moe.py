"""ERNIE 4.5 (Baidu 2025, the ERNIE 4.5 technical report): shared and routed experts, a corrected choice by softmax."""

from __future__ import annotations

from dataclasses import replace

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import deepseek_v2 as v2
from easydel.families import family
from easydel.families import llama as base
from easydel.layers.embed import Head
from easydel.layers.mlp import GLU
from easydel.layers.moe import MoE, TopK
from easydel.weights.names import one_row

NAMES = v2.NAMES.extended(
    {"gate.correction_bias": "moe_statics.e_score_correction_bias"},
    ignored=(r"(model\.)?mtp_.*",),
    reshaped={"moe_statics.e_score_correction_bias": one_row},
)
SIZES = {"vocab_size": 103424, "hidden_size": 2560, "intermediate_size": 12288, "num_hidden_layers": 28}
HEADS = {"num_attention_heads": 20, "num_key_value_heads": 4, "max_position_embeddings": 131072, "rope_theta": 5e5}
EXPERTS = {"moe_num_experts": 64, "moe_num_shared_experts": 2, "moe_intermediate_size": 1536, "moe_k": 6}
WHICH = {"moe_layer_start_index": 1, "moe_layer_end_index": -1, "moe_layer_interval": 1, "moe_norm_min": 1e-12}
OTHERS = {"rms_norm_eps": 1e-5, "tie_word_embeddings": True, "use_bias": False}
DEFAULTS = base.DEFAULTS | SIZES | HEADS | EXPERTS | WHICH | OTHERS
ALIASES = {"moe_num_experts": "num_experts", "moe_k": "num_experts_per_tok"}
# of training, and of layers that predict tokens further ahead, which are left out
INERT = ("moe_capacity", "moe_gate", "moe_use_aux_free", "num_nextn_predict_layers")


@family("ernie4_5_moe", NAMES, defaults=DEFAULTS, aliases=ALIASES, inert=INERT)
def ernie4_5_moe(c: HFConfig) -> Decoder:
    v2.require(c, "moe_norm_min", c.moe_norm_min, 1e-12)  # the least that weights are divided by: never reached
    bias, act, layers, last = c.use_bias, c.hidden_act, c.num_hidden_layers, c.moe_layer_end_index
    expert, shared = GLU(c.moe_intermediate_size, act), c.moe_intermediate_size * c.moe_num_shared_experts
    router = TopK(c.moe_k, renormalize=True, corrected=True)
    sparse = MoE(c.moe_num_experts, expert, router, GLU(shared, act, bias) if shared else None)
    routed = range(c.moe_layer_start_index, (layers - 1 if last == -1 else last) + 1)
    dense, step = GLU(c.intermediate_size, act, bias), c.moe_layer_interval
    ffns = [sparse if i in routed and (i + 1) % step == 0 else dense for i in range(layers)]
    mixer = base.attention(c, bias=bias, out_bias=bias, interleaved=True)
    plain = base.pre_norm(c, [mixer] * layers, ffns)
    return replace(plain, head=Head(c.tie_word_embeddings, bias=bias))
