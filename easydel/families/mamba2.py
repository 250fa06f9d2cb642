"""Mamba 2 (Dao & Gu 2024, arXiv:2405.21060): a recurrence by heads in place of both attention and feed-forwards."""

from easydel.families import mamba as base
from easydel.families._mamba2 import IN_PROJ, KERNELS, limits
from easydel.families._parts import Block, Decoder, Embed, GatedNorm, HFConfig, Mamba2, RMSNorm, family

INERT = {"chunk_size": KERNELS, "time_step_rank": "of Mamba 1", "expand": "heads times their channels tell"}


@family("mamba2", base.NAMES.extended(fused=(IN_PROJ,)), inert=INERT)
def mamba2(c: HFConfig) -> Decoder:
    norm, groups = RMSNorm(c.layer_norm_epsilon), c.n_groups
    choices = {"bias": c.use_bias, "out_bias": c.use_bias, "conv_bias": c.use_conv_bias, "limits": limits(c)}
    sizes = (c.num_heads, c.head_dim, groups, c.state_size, c.conv_kernel)
    mixer = Mamba2(*sizes, c.hidden_act, GatedNorm(norm, groups), **choices)
    blocks = [Block(mixer, None, attn_in=norm)] * c.num_hidden_layers
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm, embed=Embed(float32=c.residual_in_fp32))
