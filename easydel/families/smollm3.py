"""SmolLM3 (Bakouch et al. 2025, huggingface.co/blog/smollm3): Llama whose every fourth layer has no rope."""

from __future__ import annotations

from typing import Any

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.errors import ConfigError
from easydel.families import family
from easydel.families import llama as base
from easydel.families.qwen2 import FULL, SLIDING, layer_types
from easydel.layers.attention import Attention

SIZES = {"vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 36, "max_position_embeddings": 32768}
HEADS = {"num_attention_heads": 16, "num_key_value_heads": 4, "rope_theta": 2000000.0, "no_rope_layer_interval": 4}
SWITCHES = {"tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": None}
DEFAULTS = base.DEFAULTS | SIZES | HEADS | SWITCHES


def mixers(c: HFConfig) -> list[Attention]:
    """Each layer's attention. `no_rope_layers` has 1 where there is rope; the others may have a window instead."""
    interval, layers = c.no_rope_layer_interval, range(c.num_hidden_layers)
    ropes = c.get("no_rope_layers") or [(layer + 1) % interval for layer in layers]
    if len(ropes) < len(layers):
        raise ConfigError(f"no_rope_layers has {len(ropes)} entries for {len(layers)} layers", file=c.file)
    window = c.sliding_window if c.use_sliding_window else None
    kinds = layer_types(c, [SLIDING if window and not ropes[layer] else FULL for layer in layers])
    own: list[dict[str, Any]] = [{} if rope else {"position": None} for rope in ropes[: len(layers)]]
    for choices, kind in zip(own, kinds, strict=True):
        choices["window"] = window if kind == SLIDING else None
    return [base.attention(c, bias=c.attention_bias, out_bias=c.attention_bias, **choices) for choices in own]


@family("smollm3", base.NAMES, defaults=DEFAULTS, inert=("max_window_layers",))
def smollm3(c: HFConfig) -> Decoder:
    return base.pre_norm(c, mixers(c), bias=c.mlp_bias)
