"""North Micro Vision's language model (Cohere 2026, the card of CohereLabs/North-Micro-Vision-Instruct)."""

from typing import Any

from easydel.families import cohere
from easydel.families._layers import FULL, SLIDING, layer_types
from easydel.families._parts import Attention, Decoder, HFConfig, family
from easydel.families.llama import NAMES, attention


@family("cohere_compass_text", NAMES, inert={"pooling": "of models that embed whole texts"})
def cohere_compass_text(c: HFConfig) -> Decoder:
    """A kind of layers whose rotary settings are null has no positions."""
    stated = c.get("rope_parameters", {})

    def of(kind: str) -> Attention:
        position: dict[str, Any] = (
            {"position": None} if kind in stated and stated[kind] is None else {"rope": c.rope(kind)}
        )
        bias, window = c.attention_bias, c.sliding_window if kind == SLIDING else None
        return attention(c, window=window, biased=bias, **position)

    return cohere.parallel(c, [of(kind) for kind in layer_types(c, [FULL] * c.num_hidden_layers)])
