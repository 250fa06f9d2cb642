"""SmolLM3 (Bakouch et al. 2025, huggingface.co/blog/smollm3): Llama whose every fourth layer has no rope."""

from typing import Any

from easydel.families import llama as base
from easydel.families._layers import FULL, SLIDING, layer_types
from easydel.families._parts import Attention, ConfigError, Decoder, HFConfig, family


def mixers(c: HFConfig) -> list[Attention]:
    """Returns each layer's attention. `no_rope_layers` has 1 for rope; the other layers may have a window instead."""
    interval, layers = c.no_rope_layer_interval, range(c.num_hidden_layers)
    ropes = c.get("no_rope_layers") or [(layer + 1) % interval for layer in layers]
    if len(ropes) < len(layers):
        raise ConfigError(f"no_rope_layers has {len(ropes)} entries for {len(layers)} layers", file=c.file)
    window = c.sliding_window if c.use_sliding_window else None
    kinds = layer_types(c, [SLIDING if window and not ropes[layer] else FULL for layer in layers])
    own: list[dict[str, Any]] = [{} if rope else {"position": None} for rope in ropes[: len(layers)]]
    for choices, kind in zip(own, kinds, strict=True):
        choices["window"] = window if kind == SLIDING else None
    return [base.attention(c, biased=c.attention_bias, **choices) for choices in own]


@family("smollm3", base.NAMES)
def smollm3(c: HFConfig) -> Decoder:
    return base.pre_norm(c, mixers(c), bias=c.mlp_bias)
