"""Jamba (AI21 2024, arXiv:2403.19887): Mamba in most layers, attention without positions in a few, routed experts."""

import math

from easydel.families import bamba, llama as base
from easydel.families._parts import GLU, Decoder, HFConfig, Mamba, MoE, Names, RMSNorm, TopK, family

NAMES = Names(bamba.MODULES | {"mixer": "mamba", "mlp.gate": "feed_forward.router"})


@family("jamba", NAMES)
def jamba(c: HFConfig) -> Decoder:
    rank, norm = c.mamba_dt_rank, RMSNorm(c.rms_norm_eps)
    rank = math.ceil(c.hidden_size / 16) if rank == "auto" else rank
    sizes = (c.mamba_expand * c.hidden_size, c.mamba_d_state, c.mamba_d_conv, rank)
    recurrent = Mamba(*sizes, c.hidden_act, c.mamba_proj_bias, c.mamba_conv_bias, norm)
    heads = c.num_attention_heads
    attention = base.assembled(heads, {"kv": c.num_key_value_heads or heads, "dim": c.hidden_size // heads})
    dense, layers = GLU(c.intermediate_size, c.hidden_act), range(c.num_hidden_layers)
    sparse = MoE(c.num_experts, dense, TopK(c.num_experts_per_tok)) if c.num_experts > 1 else dense
    mixers = [attention if i % c.attn_layer_period == c.attn_layer_offset else recurrent for i in layers]
    ffns = [sparse if i % c.expert_layer_period == c.expert_layer_offset else dense for i in layers]
    return base.pre_norm(c, mixers, ffns)
