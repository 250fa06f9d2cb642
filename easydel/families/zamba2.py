"""Zamba 2 (Glorioso et al. 2024, arXiv:2411.15242): Mamba 2, transformers that layers share, and adapters to them."""

from collections.abc import Sequence

from easydel.families import _zamba as base, llama
from easydel.families._mamba2 import IN_PROJ, KERNELS, LINEAR
from easydel.families._parts import (
    GATE_UP,
    GLU,
    Decoder,
    Fused,
    GatedNorm,
    HFConfig,
    Mamba2,
    Names,
    RMSNorm,
    family,
    rope_from_settings,
)
from easydel.layers.global_block import Adapters, GlobalBlock

ADAPTERS = {"gate_up_adapter": "feed_forward.gate_up_proj_adapter_list", "down": "0", "up": "1"}
ADAPTERS |= {f"{name}_adapter": f"self_attn.linear_{name}_adapter_list" for name in "qkv"}
TABLE = Names(base.ROWS | ADAPTERS, fused=(IN_PROJ, Fused("mlp.gate_up_proj", GATE_UP)))
DEFAULT = [LINEAR, *([LINEAR] * 5 + [base.HYBRID]) * 7, *[LINEAR] * 4, base.HYBRID, *[LINEAR] * 3, base.HYBRID]
DEFAULT += [LINEAR] * 2
INERT = {
    "chunk_size": KERNELS,
    "use_conv_bias": "the convolution always has one",
    "use_mem_eff_path": "how much memory it takes",
}


def kinds(c: HFConfig) -> Sequence[str]:
    return base.kinds(c, DEFAULT)


def names(c: HFConfig) -> Names:
    return base.names(kinds(c), c.num_mem_blocks, "shared_transformer", TABLE)


@family("zamba2", names, inert=INERT)
def zamba2(c: HFConfig) -> Decoder:
    c.only("use_long_context", False)  # transformers announces other rotary settings, and does not make them
    heads, dim, bias = c.num_attention_heads, 2 * c.hidden_size // c.num_attention_heads, c.add_bias_linear
    rope = rope_from_settings(c.rope(), dim)
    sizes = {"kv": c.get("num_key_value_heads") or heads, "dim": dim, "scale": (dim / 2) ** -0.5}
    attention = llama.assembled(heads, sizes | {"position": rope if c.use_mem_rope else None})
    ffn = GLU(c.get("intermediate_size") or 4 * c.hidden_size, c.hidden_act, bias)
    norm, rank, wide = RMSNorm(c.rms_norm_eps), c.adapter_rank, c.use_shared_attention_adapter
    shared = [
        GlobalBlock(attention, ffn, norm, Adapters(tuple(own), rank, wide))
        for own in base.users(kinds(c), c.num_mem_blocks).values()
    ]
    heads, groups = c.n_mamba_heads, c.mamba_ngroups
    sizes = (heads, c.mamba_expand * c.hidden_size // heads, groups, c.mamba_d_state, c.mamba_d_conv)
    limits = (c.get("time_step_min", 0.001), float("inf"))
    gated = GatedNorm(RMSNorm(1e-5), groups)
    mixer = Mamba2(*sizes, "silu", gated, bias=bias, out_bias=bias, limits=limits)
    return base.decoder(c, kinds(c), mixer, shared)
