"""Llama 1 to 3 (Touvron et al. 2023, arXiv:2302.13971; Llama 3: arXiv:2407.21783) and the many that share its form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family
from easydel.layers.attention import Attention
from easydel.layers.block import Block, FeedForward, Mixer
from easydel.layers.mlp import GLU
from easydel.layers.norm import RMSNorm
from easydel.layers.rope import rope_from_settings
from easydel.weights.names import Names

NAMES = Names(ignored=(r".*rotary_emb\.inv_freq",))
DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}


def attention(
    c: HFConfig, *, rope: Mapping[str, Any] | None = None, interleaved: bool = False, **choices: Any
) -> Attention:
    """Grouped-query attention with rotary positions, as nearly every family has it; `choices` override its fields.

    `rope` are rotary settings other than those of the config.
    """
    heads = c.num_attention_heads
    head_dim = c.get("head_dim") or c.hidden_size // heads
    fields = {
        "kv_heads": c.get("num_key_value_heads") or heads,
        "head_dim": head_dim,
        "position": rope_from_settings(rope or c.rope(), head_dim, interleaved=interleaved),
    }
    return Attention(heads, **(fields | choices))


def pre_norm(
    c: HFConfig, mixers: Sequence[Mixer], ffns: Sequence[FeedForward] | None = None, *, bias: bool = False
) -> Decoder:
    """Llama's blocks around `mixers`, one for each layer, and `ffns`: by default GLUs, perhaps with `bias`."""
    norm = RMSNorm(c.rms_norm_eps)
    ffns = ffns or [GLU(c.intermediate_size, c.hidden_act, bias)] * len(mixers)
    blocks = [Block(mixer, ffn, attn_in=norm, ffn_in=norm) for mixer, ffn in zip(mixers, ffns, strict=True)]
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm)


@family("llama", NAMES, defaults=DEFAULTS)
def llama(c: HFConfig) -> Decoder:
    mixer = attention(c, bias=c.attention_bias, out_bias=c.attention_bias)
    return pre_norm(c, [mixer] * c.num_hidden_layers, bias=c.mlp_bias)
