"""Bamba (IBM, Princeton, CMU and UIUC 2024): Mamba 2 in most layers, attention in a few, GLUs in all."""

from easydel.families import llama as base
from easydel.families._mamba2 import IN_PROJ, KERNELS, LINEAR, kinds, mixer
from easydel.families._parts import Decoder, HFConfig, family
from easydel.keys import FULL

MODULES = {"mlp": "feed_forward", "post_attention_layernorm": "pre_ff_layernorm", "model.norm": "model.final_layernorm"}
NAMES = base.NAMES.extended({"mixer": "mamba"} | MODULES, fused=(IN_PROJ,))
INERT = {"mamba_chunk_size": KERNELS, "z_loss_coefficient": "of the loss in training"}


@family("bamba", NAMES, inert=INERT)
def bamba(c: HFConfig) -> Decoder:
    attention = base.attention(c, biased=c.attention_bias)
    full = c.attn_layer_indices or ()
    found = kinds(c, [FULL if i in full else LINEAR for i in range(c.num_hidden_layers)])
    return base.pre_norm(c, [mixer(c) if kind == LINEAR else attention for kind in found], bias=c.mlp_bias)
