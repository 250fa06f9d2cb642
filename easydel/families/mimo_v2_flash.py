"""MiMo-V2-Flash (Xiaomi 2026, arXiv:2601.02780): sliding layers with sinks and twice the keys, scaled values."""

from typing import Any

from easydel.families import llama as base
from easydel.families._experts import CORRECTED, by_type, corrected_router, experts
from easydel.families._layers import FULL, SLIDING, layer_types
from easydel.families._parts import GLU, Decoder, HFConfig, family

NAMES = base.NAMES.extended(CORRECTED | {"sinks": "attention_sink_bias"}, ignored=(r"model\.mtp\..*",))


def rotary(c: HFConfig) -> dict[str, dict[str, Any]]:
    """The rotary settings of each kind of layer; the authors' files have the sliding ones' theta beside the others'."""
    both = {kind: {"partial_rotary_factor": 0.334} | c.rope(kind) for kind in (FULL, SLIDING)}
    if SLIDING not in c.get("rope_parameters", {}):
        both[SLIDING]["rope_theta"] = c.get("swa_rope_theta", 10000.0)
    return both


@family("mimo_v2_flash", NAMES)
def mimo_v2_flash(c: HFConfig) -> Decoder:
    size, settings = c.get("sliding_window_size"), rotary(c)
    window = c.sliding_window if size is None else size + 1  # the authors' count leaves the query out
    scale = c.get("attention_value_scale", 1.0)
    twice = {"kv": 2 * c.num_key_value_heads}
    choices = {"biased": "qkv" if c.attention_bias else "", "value_dim": c.v_head_dim, "value_scale": scale}
    kinds = {
        FULL: base.attention(c, rope=settings[FULL], **choices),
        SLIDING: base.attention(c, rope=settings[SLIDING], window=window, sinks=True, **choices, **twice),
    }
    default = [SLIDING if i and (i + 1) % 6 else FULL for i in range(c.num_hidden_layers)]
    ffns = by_type(c, experts(c, corrected_router(c)), GLU(c.intermediate_size, c.hidden_act), 1)
    return base.pre_norm(c, [kinds[kind] for kind in layer_types(c, default)], ffns)
