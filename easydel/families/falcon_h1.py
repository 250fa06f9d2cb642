"""Falcon-H1 (TII 2025, arXiv:2507.22448): attention beside Mamba 2 in each layer, and a multiplier for each matrix."""

from dataclasses import dataclass, replace

import jax

from easydel.expected import is_number, shown
from easydel.families import bamba, llama as base
from easydel.families._mamba2 import KERNELS, mixer
from easydel.families._parts import (
    GLU,
    Beside,
    Block,
    ConfigError,
    Decoder,
    Embed,
    GatedNorm,
    Head,
    HFConfig,
    RMSNorm,
    Sequential,
    family,
)

NAMES = bamba.NAMES.extended({"mixers": ""}, mlx_folded="the config's multipliers")


@dataclass(frozen=True)
class ScaledGLU(GLU):
    """`gate_scale` multiplies what goes into the activation."""

    gate_scale: float = 1.0

    def combine(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        return super().combine(gate * self.gate_scale, up)


def multipliers(c: HFConfig, key: str, count: int) -> tuple[float, ...]:
    """Returns the `count` multipliers that the config has under `key`; 1 for each where it has none."""
    found = c.get(key) or [1.0] * count
    if not isinstance(found, list | tuple) or len(found) != count or not all(map(is_number, found)):
        raise ConfigError(f"{key} is {shown(found)}, expected {count} numbers", file=c.file)
    return tuple(found)


def mixers(c: HFConfig) -> Beside:
    """Attention, whose multiplier of keys is part of its scale, beside Mamba 2, whose gated norm is optional."""
    attention = base.attention(c, biased=c.attention_bias)
    scale = attention.heads.dim**-0.5 * c.key_multiplier
    inner, norm = c.get("mamba_d_ssm", c.mamba_expand * c.hidden_size), RMSNorm(c.rms_norm_eps)
    where = c.mamba_norm_before_gate  # files without a norm have it too
    gated = GatedNorm(norm, c.mamba_n_groups, where) if c.mamba_rms_norm else None
    scales = multipliers(c, "ssm_multipliers", 5)
    parts = (
        replace(attention, weights=replace(attention.weights, scale=scale)),
        mixer(c, inner, norm=gated, out_bias=c.projectors_bias, scales=scales),
    )
    scales_in = (c.attention_in_multiplier, c.ssm_in_multiplier)
    return Beside(parts, (c.attention_out_multiplier, c.ssm_out_multiplier), scales_in)


@family("falcon_h1", NAMES, inert={"mamba_chunk_size": KERNELS})
def falcon_h1(c: HFConfig) -> Decoder:
    norm, (gate, down) = RMSNorm(c.rms_norm_eps), multipliers(c, "mlp_multipliers", 2)
    ffn = ScaledGLU(c.intermediate_size, c.hidden_act, c.mlp_bias, gate_scale=gate)
    block = Block(mixers(c), ffn, attn_in=norm, ffn_in=norm, ffn_residual=Sequential(down))
    head = Head(c.tie_word_embeddings, scale=c.lm_head_multiplier)
    embed = Embed(scale=c.embedding_multiplier)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm, head=head, embed=embed)
