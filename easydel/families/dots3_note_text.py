"""Dots 3 Note (dots studio 2026, the model card of dots-studio/dots3-note-prev): DeepSeek-V3.2 between sliding layers.

All layers have gated latent attention; those that see a window have sizes of their own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from easydel.families import deepseek_v2 as v2, deepseek_v32 as v32, llama as base
from easydel.families._experts import CORRECTED, by_type, corrected_router
from easydel.families._layers import FULL, SLIDING, checked_types
from easydel.families._parts import (
    GLU,
    MLA,
    ConfigError,
    Decoder,
    Gate,
    HFConfig,
    Indexer,
    LayerNorm,
    MoE,
    Names,
    Part,
    RMSNorm,
    Rope,
    family,
    rope_from_settings,
)

INDEXED = v32.INDEXED
INERT = {"head_dim": v32.INERT["head_dim"], "mlp_bias": v32.INERT["mlp_bias"]}
SIZES = ("num_attention_heads", "num_key_value_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim")
SLIDING_SIZES = dict(zip(SIZES, (64, 64, 1024, 1024, 192, 128), strict=True))
ROTATED = "qk_rope_head_dim"


def kinds(c: HFConfig) -> Sequence[str]:
    """The first files call layers with an indexer `full_attention`."""
    layers, indexed = range(c.num_hidden_layers), c.get("use_dsa", None if c.get("per_layer_config") else True)
    sliding, full = c.get("use_sliding_window", True), FULL if indexed is False else INDEXED
    found = c.get("layer_types") or [full if not sliding or i < 2 or i % 4 == 1 else SLIDING for i in layers]
    if indexed is not None:
        found = [full if kind in (FULL, INDEXED) else kind for kind in found]
    return checked_types(c, "layer_types", found, (FULL, SLIDING, INDEXED))


def sizes(c: HFConfig, kinds: Sequence[str]) -> list[dict[str, int]]:
    """The sizes of each layer's attention. The first files have those of sliding layers as `swa_...`."""
    stated = c.inside("per_layer_config")
    by_layer = {int(key): stated.inside(key) for key in stated}
    common = {key: getattr(c, key) for key in (*SIZES, ROTATED)}
    sliding = {key: c.get(f"swa_{key}", value) for key, value in SLIDING_SIZES.items()}
    left = c.get("swa_head_dim", 256) - sliding["qk_nope_head_dim"]
    sliding[ROTATED] = c.get(f"swa_{ROTATED}", left)
    if by_layer:
        own = [by_layer.get(layer, common) for layer in range(len(kinds))]
        return [{key: one.get(key, value) for key, value in common.items()} for one in own]
    return [sliding if kind == SLIDING else common for kind in kinds]


def rope(c: HFConfig, kind: str, rotated: int) -> Rope:
    stated = c.get("rope_parameters") or c.get("rope_scaling") or {}
    settings: Mapping[str, Any] = c.rope(kind if kind in stated or kind == SLIDING else INDEXED)
    theta = c.get("swa_rope_theta", 50000.0)
    if not stated and kind == SLIDING:
        settings = {"rope_type": "default", "rope_theta": theta}
    return rope_from_settings({**settings, "partial_rotary_factor": None}, rotated, interleaved=True)


def attention(c: HFConfig, kind: str, sizes: Mapping[str, int]) -> MLA:
    heads, kv_heads, q_rank, rank, plain, values = (sizes[key] for key in SIZES)
    if kv_heads != heads:
        prefix = "swa_" if kind == SLIDING and not c.get("per_layer_config") else ""
        found = f"{prefix}num_attention_heads is {heads!r}, {prefix}num_key_value_heads is {kv_heads!r}"
        raise ConfigError(f"{found}: latent attention has as many key heads as heads", file=c.file)
    position, window = rope(c, kind, sizes[ROTATED]), c.get("sliding_window") or c.get("sliding_window_size", 512)
    norm, count = RMSNorm(c.rms_norm_eps), (c.index_n_heads, c.index_head_dim, c.index_topk)
    indexer = Indexer(*count, q_rank, position, LayerNorm(1e-6))
    # factors of the latents: that of queries goes into their scale, and does not change the indexer's choice
    scale = (plain + sizes[ROTATED]) ** -0.5 * (c.hidden_size / q_rank) ** 0.5
    own = {"q_rank": q_rank, "bias": c.attention_bias, "scale": scale, "latent_scale": (c.hidden_size / rank) ** 0.5}
    own |= {"select": indexer if kind == INDEXED else None, "window": window if kind == SLIDING else None}
    return MLA(heads, plain, values, rank, position, norm, key_norm=norm, gate=Gate(per_head=True), **own)


def ffns(c: HFConfig) -> list[Part]:
    layers, first, step = c.num_hidden_layers, c.get("first_k_dense_replace", 1), c.get("moe_layer_freq", 1)
    routed = [step[i] if isinstance(step, list) else i % step == 0 for i in range(layers)]
    default = ["sparse" if i >= first and routed[i] else "dense" for i in range(layers)]
    size = c.get("moe_shared_expert_intermediate_size", c.shared_experts_intermediate_size)
    shared, expert = GLU(size * c.n_shared_experts, c.hidden_act), GLU(c.moe_intermediate_size, c.hidden_act)
    sparse = MoE(c.n_routed_experts, expert, corrected_router(c), shared)
    return by_type(c, sparse, GLU(c.intermediate_size, c.hidden_act), default=default)


def names(c: HFConfig) -> Names:
    """Layers past the last one, and `mtp`, predict tokens further ahead."""
    ours = {r"self_attn\.gate_proj": "self_attn.g_proj", r"self_attn\.k_norm": "self_attn.k_rope_only_layernorm"}
    ahead = (rf"model\.layers\.{c.num_hidden_layers}\..*", r"model\.mtp\..*")
    return v2.NAMES.extended(CORRECTED | ours, ignored=ahead)


@family("dots3_note_text", names, inert=INERT)
def dots3_note_text(c: HFConfig) -> Decoder:
    types = kinds(c)
    mixers = [attention(c, kind, own) for kind, own in zip(types, sizes(c, types), strict=True)]
    return base.pre_norm(c, mixers, ffns(c))
