"""Granite with sliding windows (IBM 2026, the model card of ibm-granite/granite-swash-2b): sinks, a theta per layer."""

from collections.abc import Sequence

from easydel.families import granite, llama as base
from easydel.families._layers import FULL, SLIDING, layer_types, windows
from easydel.families._parts import GLU, Attention, ConfigError, Decoder, HFConfig, family


def attentions(c: HFConfig) -> Sequence[Attention]:
    """Returns each layer's attention: three of four have a window, and a theta of 0 means no positions."""
    settings, layers = c.rope(), c.num_hidden_layers
    kinds = layer_types(c, [SLIDING if i % 4 else FULL for i in range(layers)])
    thetas = c.get("layer_rope_theta") or [settings["rope_theta"]] * layers
    if len(thetas) != layers:
        raise ConfigError(f"{len(thetas)} layer_rope_theta for {layers} layers", file=c.file)
    places = [{"rope": settings | {"rope_theta": theta}} if theta else {"position": None} for theta in thetas]
    return [
        granite.attention(c, sinks=True, window=window, **place)
        for window, place in zip(windows(c, kinds), places, strict=True)
    ]


@family("granite_swa", base.NAMES)
def granite_swa(c: HFConfig) -> Decoder:
    return granite.multiplied(c, GLU(c.intermediate_size, c.hidden_act, c.mlp_bias), attentions(c))
