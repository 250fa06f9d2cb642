"""Falcon (Almazrouei et al. 2023, arXiv:2311.16867): three layouts of fused projections, rotary or ALiBi."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from easydel.families import bloom
from easydel.families._parts import (
    MLP,
    ALiBi,
    Block,
    Decoder,
    HFConfig,
    LayerNorm,
    Names,
    Parallel,
    Sequential,
    concatenated,
    family,
    grouped,
)
from easydel.families.llama import attention
from easydel.layers.context import Context


@dataclass(frozen=True)
class ScaledALiBi(ALiBi):
    """ALiBi scaled like the scores, with positions, slopes and their products rounded to bfloat16."""

    head_dim: int = 64

    def slopes(self) -> np.ndarray:
        return super().slopes().astype(ml_dtypes.bfloat16).astype(np.float32)

    def bias(self, context: Context, length: int) -> jax.Array:
        positions_BS = bfloat16_values(self.positions(context, length))
        products_BNS = jnp.asarray(self.slopes())[:, None] * positions_BS[:, None]
        return bfloat16_values(products_BNS)[:, :, None] / math.sqrt(self.head_dim)


def bfloat16_values(x: jax.Array) -> jax.Array:
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)  # XLA may leave out casts there and back


def separate_norms(c: HFConfig) -> bool:
    """True if parallel attention and feed-forward have a norm each."""
    return bool(c.new_decoder_architecture) and c.get("num_ln_in_parallel_attn", 2) == 2


def names(c: HFConfig) -> Names:
    layout = concatenated if c.multi_query else grouped(c.num_attention_heads)
    if c.new_decoder_architecture:
        layout = grouped(c.get("num_key_value_heads") or c.num_attention_heads)
    norms = {"input_layernorm": "ln_attn", "post_attention_layernorm": "ln_mlp"} if separate_norms(c) else {}
    ignored = (r".*rotary(_emb)?\.inv_freq",)
    return Names(bloom.RENAMES | norms, bloom.fused(layout), ignored=ignored, prefix="transformer")


@family("falcon", names, aliases={"n_embed": "hidden_size", "num_key_value_heads": "num_kv_heads"})
def falcon(c: HFConfig) -> Decoder:
    heads, norm = c.num_attention_heads, LayerNorm(c.layer_norm_epsilon)
    choices = {"biased": c.bias}
    if not c.new_decoder_architecture:
        choices |= {"kv": 1 if c.multi_query else heads}
    if c.alibi:
        choices |= {"position": ScaledALiBi(heads, head_dim=c.hidden_size // heads)}
    parallel = c.parallel_attn or c.new_decoder_architecture
    block = Block(
        attention(c, **choices),
        MLP(c.get("ffn_hidden_size") or 4 * c.hidden_size, c.activation, c.bias),
        attn_in=norm,
        ffn_in=norm if separate_norms(c) or not parallel else None,
        residual=Parallel() if parallel else Sequential(),
    )
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm)
