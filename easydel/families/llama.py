"""Llama 1 to 3 (Touvron et al. 2023, arXiv:2302.13971; Llama 3: arXiv:2407.21783) and the many that share its form."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from easydel.families._parts import (
    GLU,
    Attention,
    Block,
    Causal,
    Decoder,
    Heads,
    HFConfig,
    Names,
    Part,
    RMSNorm,
    Weights,
    family,
    rope_from_settings,
)

NAMES = Names(ignored=(r".*rotary_emb\.inv_freq",))


def attention(
    c: HFConfig, *, rope: Mapping[str, Any] | None = None, interleaved: bool = False, **choices: Any
) -> Attention:
    """Returns grouped-query attention with rotary positions, as nearly every family has it; `choices` override fields.

    `rope` are rotary settings to use instead of the config's. Fields of `Heads` and `Weights` are given by their names.
    """
    heads = c.num_attention_heads
    head_dim = c.get("head_dim") or c.hidden_size // heads
    own = {
        "kv": c.get("num_key_value_heads") or heads,
        "dim": head_dim,
        "position": rope_from_settings(rope or c.rope(), head_dim, interleaved=interleaved),
    }
    return assembled(heads, own | choices)


def assembled(heads: int, choices: Mapping[str, Any]) -> Attention:
    """Returns attention of `heads` heads; `choices` has fields of `Attention`, `Heads` and `Weights` side by side.

    `biased` may be a bool, for all four projections or none; `window` stands for a causal sight with one.
    """

    def taken(record: type) -> dict[str, Any]:
        return {field.name: rest.pop(field.name) for field in fields(record) if field.name in rest}

    rest = dict(choices)
    if not isinstance(rest.get("biased", ""), str):
        rest["biased"] = "qkvo" if rest["biased"] else ""
    if "window" in rest:
        rest["sight"] = Causal(rest.pop("window"))
    return Attention(Heads(heads, **taken(Heads)), weights=Weights(**taken(Weights)), **rest)


def pre_norm(c: HFConfig, mixers: Sequence[Part], ffns: Sequence[Part] | None = None, *, bias: bool = False) -> Decoder:
    """Returns Llama's blocks around `mixers`, one for each layer, and `ffns`: by default GLUs, perhaps with `bias`."""
    norm = RMSNorm(c.rms_norm_eps)
    ffns = ffns or [GLU(c.intermediate_size, c.hidden_act, bias)] * len(mixers)
    blocks = [Block(mixer, ffn, attn_in=norm, ffn_in=norm) for mixer, ffn in zip(mixers, ffns, strict=True)]
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm)


@family("llama", NAMES)
def llama(c: HFConfig) -> Decoder:
    mixer = attention(c, biased=c.attention_bias)
    return pre_norm(c, [mixer] * c.num_hidden_layers, bias=c.mlp_bias)
