"""Hunyuan dense (Tencent 2025, github.com/Tencent-Hunyuan): Llama with norms on q and k after they are rotated."""

from __future__ import annotations

from typing import Any

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family
from easydel.families import llama as base
from easydel.layers.attention import QKNorm
from easydel.layers.norm import RMSNorm

NAMES = base.NAMES.extended({"q_norm": "query_layernorm", "k_norm": "key_layernorm"})
DEFAULTS = base.DEFAULTS | {"vocab_size": 290943, "rms_norm_eps": 1e-5}
# Which say what is always done, or are of other models that share the code: tokens, pictures, classes.
INERT = (
    *("use_qk_norm", "use_rotary_pos_emb", "norm_type", "attention_head_dim", "org_vocab_size", "cla_share_factor"),
    *("dense_list", "pool_type", "mask_init_id", "num_media_embeds", "pad_id", "im_start_id", "im_end_id"),
    *("im_newline_id", "text_start_id", "text_end_id"),
)


def rope(c: HFConfig) -> dict[str, Any]:
    """Rotary settings; with a fixed `alpha`, a dynamic rope is one of another theta (NTK-aware scaling)."""
    settings = c.rope()
    if settings["rope_type"] != "dynamic" or not (alpha := settings.get("alpha")):
        return settings
    dim = c.get("head_dim") or c.hidden_size // c.num_attention_heads
    return {"rope_type": "default", "rope_theta": settings["rope_theta"] * float(alpha) ** (dim / (dim - 2))}


@family("hunyuan_v1_dense", NAMES, defaults=DEFAULTS, inert=INERT)
def hunyuan_v1_dense(c: HFConfig) -> Decoder:
    norm, bias = QKNorm(RMSNorm(c.rms_norm_eps), rotated=True), c.attention_bias
    mixer = base.attention(c, rope=rope(c), bias=bias, out_bias=bias, qk_norm=norm)
    return base.pre_norm(c, [mixer] * c.num_hidden_layers)
