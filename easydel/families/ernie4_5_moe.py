"""ERNIE 4.5 (Baidu 2025, the ERNIE 4.5 technical report): shared and routed experts, a corrected choice by softmax."""

from dataclasses import replace

from easydel.families import deepseek_v2 as v2, llama as base
from easydel.families._experts import FUSED_BY_PEFT
from easydel.families._parts import GLU, Decoder, Head, HFConfig, MoE, TopK, family, one_row

NAMES = v2.NAMES.extended(
    {"gate.correction_bias": "moe_statics.e_score_correction_bias"},
    ignored=(r"(model\.)?mtp_.*",),
    reshaped={"moe_statics.e_score_correction_bias": one_row},
    exact=(r"mlp\.gate",),
)


@family("ernie4_5_moe", NAMES, peft_lacks=FUSED_BY_PEFT)
def ernie4_5_moe(c: HFConfig) -> Decoder:
    c.only("moe_norm_min", 1e-12)  # the least that weights are divided by: never reached
    bias, act, layers, last = c.use_bias, c.hidden_act, c.num_hidden_layers, c.moe_layer_end_index
    expert, shared = GLU(c.moe_intermediate_size, act), c.moe_intermediate_size * c.moe_num_shared_experts
    router = TopK(c.moe_k, renormalize=True, corrected=True)
    sparse = MoE(c.moe_num_experts, expert, router, GLU(shared, act, bias) if shared else None)
    routed = range(c.moe_layer_start_index, (layers - 1 if last == -1 else last) + 1)
    dense, step = GLU(c.intermediate_size, act, bias), c.moe_layer_interval
    ffns = [sparse if i in routed and (i + 1) % step == 0 else dense for i in range(layers)]
    mixer = base.attention(c, biased=bias, interleaved=True)
    plain = base.pre_norm(c, [mixer] * layers, ffns)
    return replace(plain, head=Head(c.tie_word_embeddings, bias=bias))
