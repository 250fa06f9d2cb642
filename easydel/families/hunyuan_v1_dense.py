"""Hunyuan dense (Tencent 2025, github.com/Tencent-Hunyuan): Llama with norms on q and k after they are rotated."""

from typing import Any

from easydel.families import llama as base
from easydel.families._parts import Attention, Decoder, HFConfig, QKNorm, RMSNorm, family

NAMES = base.NAMES.extended({"q_norm": "query_layernorm", "k_norm": "key_layernorm"})


def rope(c: HFConfig) -> dict[str, Any]:
    """Returns rotary settings; a dynamic rope with a fixed `alpha` is one of another theta (NTK-aware scaling)."""
    settings = c.rope()
    if settings["rope_type"] != "dynamic" or not (alpha := settings.get("alpha")):
        return settings
    dim = c.get("head_dim") or c.hidden_size // c.num_attention_heads
    return {"rope_type": "default", "rope_theta": settings["rope_theta"] * float(alpha) ** (dim / (dim - 2))}


def attention(c: HFConfig) -> Attention:
    """Returns the attention. Keys for its fixed choices are checked; `use_cla` would hand keys and values on."""
    for key, known in {"use_qk_norm": True, "use_rotary_pos_emb": True, "use_mla": False, "use_cla": False}.items():
        c.only(key, known)
    norm, bias = QKNorm(RMSNorm(c.rms_norm_eps), rotated=True), c.attention_bias
    return base.attention(c, rope=rope(c), biased=bias, norms=norm)


@family("hunyuan_v1_dense", NAMES)
def hunyuan_v1_dense(c: HFConfig) -> Decoder:
    return base.pre_norm(c, [attention(c)] * c.num_hidden_layers)
